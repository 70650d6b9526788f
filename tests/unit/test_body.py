"""The body is wrapped once: who looks like what from outside, and which call decides."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry

from celery_resilience import Discard, Policy, ResilientTask, TransientError, install, on
from celery_resilience.errors import BodyExited
from celery_resilience.policy.decision import Drop, GiveUp, RetryLater
from celery_resilience.task.attempt import CurrentAttempt, current_attempt


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    return app


ONCE = Policy(max_retries=1, backoff=0)


@pytest.fixture
def attempt(app: Celery) -> Callable[..., Any]:
    """``attempt(task, *args, retries=0)``: what a worker's tracer finds, and what was decided."""

    def make(task: Any, *args: Any, retries: int = 0, **kwargs: Any) -> tuple[Any, Any]:
        task = app.tasks[task.name]
        under_way = CurrentAttempt(time.time(), task)
        token = current_attempt.set(under_way)
        task.push_request(id="1", args=args, kwargs=kwargs, retries=retries, called_directly=False)
        try:
            found = task.run(*args, **kwargs)
        except BaseException as exc:
            found = exc
        finally:
            task.pop_request()
            current_attempt.reset(token)
        return found, under_way.decided and under_way.decided.decision

    return make


def test_wrapper_of_the_body_sees_a_retry_until_the_last_attempt(
    app: Celery, attempt: Callable[..., Any]
) -> None:
    error = TransientError("away")

    @app.task(failure_policy=ONCE)
    def fetch() -> None:
        raise error

    raised, decision = attempt(fetch)
    assert (type(raised), raised.exc, raised.__cause__) == (Retry, error, error)
    assert isinstance(decision, RetryLater)
    assert raised._nr_ignored, "New Relic takes what it does not know for an error"
    raised, decision = attempt(fetch, retries=1)
    assert raised is error
    assert isinstance(decision, GiveUp)


def test_discarded_failure_is_no_error_to_anybody(app: Celery, attempt: Callable[..., Any]) -> None:
    @app.task
    def cancelled() -> None:
        raise Discard("order was cancelled")

    raised, decision = attempt(cancelled)
    assert isinstance(raised, Retry)
    assert isinstance(decision, Drop)


def test_exception_that_its_owner_throws_is_seen_as_it_is(
    app: Celery, attempt: Callable[..., Any]
) -> None:
    @app.task(throws=(KeyError,))
    def look_up() -> None:
        raise KeyError("who")

    raised, decision = attempt(look_up)
    assert isinstance(raised, KeyError)
    assert isinstance(decision, Drop)


@pytest.mark.parametrize("said", [Ignore(), Reject("not mine")])
def test_control_flow_passes(app: Celery, attempt: Callable[..., Any], said: Exception) -> None:
    @app.task(failure_policy=ONCE)
    def body() -> None:
        raise said

    assert attempt(body) == (said, None)


def test_body_that_exits_has_failed(app: Celery, attempt: Callable[..., Any]) -> None:
    @app.task
    def body() -> None:
        raise SystemExit(3)

    raised, decision = attempt(body)
    assert isinstance(raised, BodyExited)
    assert isinstance(raised.__cause__, SystemExit)
    assert isinstance(decision, GiveUp)


def test_outermost_call_alone_of_an_attempt_decides(
    app: Celery, attempt: Callable[..., Any]
) -> None:
    """``super().run()``, ``self.run()`` and another task called as a function, in a body."""
    seen = []

    class Base(ResilientTask):
        name = "shop.base"
        failure_policy = Policy(on(KeyError).retry(max_retries=5, delay=0))

        def run(self, times: int) -> str:
            if times:
                try:
                    self.run(times - 1)
                except Exception as exc:
                    seen.append(exc)
                    raise
            raise KeyError(times)

    class Derived(Base):
        name = "shop.derived"

        def run(self, times: int) -> str:
            try:
                other()
            except Exception as exc:
                seen.append(exc)
            return super().run(times)

    @app.task(failure_policy=ONCE)
    def other() -> None:
        raise TransientError

    app.register_task(Base())
    derived = app.register_task(Derived())
    raised, _ = attempt(derived, 1)
    assert [type(exc) for exc in seen] == [TransientError, TransientError, KeyError]
    assert isinstance(raised, Retry)
    assert raised.exc.args == (0,)


def test_wrapper_that_tries_the_body_again_gets_the_last_decision(
    app: Celery, attempt: Callable[..., Any]
) -> None:
    """A decorator around ``run`` that repeats it, as tenacity does."""
    results: Iterator[Any] = iter([TransientError("1"), TransientError("2"), "done"])

    @app.task(failure_policy=ONCE)
    def fetch() -> str:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return str(result)

    task: Any = app.tasks[fetch.name]
    run = task.run

    @functools.wraps(run)
    def persistent() -> Any:
        while True:
            try:
                return run()
            except Retry:
                continue

    task.run = persistent
    assert attempt(task) == ("done", None)


def test_direct_call_is_one_of_the_bare_function(app: Celery) -> None:
    @app.task(failure_policy=ONCE)
    def fetch(url: str) -> str:
        raise TransientError(url)

    for call in (fetch, fetch.run):
        with pytest.raises(TransientError, match="x"):
            call("x")


def test_wrapped_run_looks_like_the_body(app: Celery) -> None:
    def fetch(url: str, *, timeout: float = 3.0) -> bytes:
        """Get it."""
        raise NotImplementedError

    def bound(self: Any, url: str, *, timeout: float = 3.0) -> bytes:
        raise NotImplementedError

    task = app.task(fetch, lazy=False)
    assert task.run.__wrapped__ is fetch
    assert (task.run.__name__, task.run.__doc__) == ("fetch", "Get it.")
    assert inspect.signature(task.run) == inspect.signature(fetch)
    assert inspect.signature(app.task(bound, bind=True, lazy=False).run) == inspect.signature(fetch)


def test_whatever_can_be_called_can_be_a_body(app: Celery, attempt: Callable[..., Any]) -> None:
    class Adds:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    class ByClass(ResilientTask):
        @classmethod
        def run(cls, a: int, b: int) -> int:
            return a + b

    bodies: dict[str, Any] = {
        "partial": functools.partial(max, 0),
        "callable": Adds(),
        "static": staticmethod(lambda a, b: a + b),
    }
    tasks = [
        app.register_task(type("T", (ResilientTask,), {"name": f"shop.{name}", "run": body})())
        for name, body in bodies.items()
    ]
    tasks.append(app.register_task(type("C", (ByClass,), {"name": "shop.by_class"})()))
    assert [attempt(task, 1, 2)[0] for task in tasks] == [2, 3, 3, 3]


def test_policy_that_raises_is_a_dead_letter(app: Celery, attempt: Callable[..., Any]) -> None:
    class Broken(Policy):
        def decide(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError

    @app.task(failure_policy=Broken())
    def fetch() -> None:
        raise TransientError("away")

    raised, decision = attempt(fetch)
    assert isinstance(raised, TransientError)
    assert decision.rule == "its policy raised"


def test_base_with_a_retry_of_its_own_is_told_when_a_worker_starts(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for all its tasks: it is not called for what a policy retries."""

    class Counting(ResilientTask):
        abstract = True

        def retry(self, *args: Any, **kwargs: Any) -> Any:
            return super().retry(*args, **kwargs)

    class Derived(Counting):
        abstract = True

    def body() -> None: ...

    consumer: Any = MagicMock()
    for base in (Counting, Derived, ResilientTask):
        task = app.task(body, name=f"shop.{base.__name__}", base=base, lazy=False)
        task.start_strategy(app, consumer)
    (line,) = (record.message for record in caplog.records if "overrides retry()" in record.message)
    assert "Counting overrides retry()" in line
