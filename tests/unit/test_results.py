"""retry_on_result and recover: checked when defined, applied eagerly as in a worker."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import Celery

from celery_resilience import (
    Failure,
    PermanentError,
    Policy,
    ResilientTask,
    TransientError,
    UnacceptableResult,
    classify,
    install,
    on,
)
from celery_resilience.task.disabled import disable


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    return app


SOON = Policy(max_retries=2, backoff=0)


def test_result_that_is_not_good_enough_is_retried(app: Celery) -> None:
    results = iter(["pending", "pending", "ready"])

    @app.task(failure_policy=SOON, retry_on_result=lambda result: result == "pending")
    def poll() -> str:
        return next(results)

    assert poll.apply().get() == "ready"


def test_failure_tells_the_last_result_when_none_is_acceptable(app: Celery) -> None:
    @app.task(failure_policy=SOON, retry_on_result=lambda result: True)
    def poll() -> str:
        return "pending" * 100

    result = poll.apply()
    assert result.state == "FAILURE"
    assert isinstance(result.result, UnacceptableResult)
    assert str(result.result).startswith("not good enough: 'pendingpending")
    assert len(str(result.result)) < 250


def test_unacceptable_result_is_transient_and_a_rule_may_name_it(app: Celery) -> None:
    assert classify(UnacceptableResult("x")).kind == "transient"
    assert pickle.loads(pickle.dumps(UnacceptableResult("x"))).args == ("x",)
    runs = []

    @app.task(
        failure_policy=Policy(on(UnacceptableResult).retry(max_retries=5, delay=0), max_retries=0),
        retry_on_result=lambda result: True,
    )
    def poll() -> None:
        runs.append(1)

    poll.apply()
    assert len(runs) == 6


def test_direct_call_is_one_of_the_bare_function(app: Celery) -> None:
    @app.task(retry_on_result=lambda result: True, recover=lambda failure: "fallback")
    def poll(x: int) -> int:
        if x:
            return x
        raise TransientError

    assert poll(7) == 7
    with pytest.raises(TransientError):
        poll(0)


def test_predicate_that_raises_leaves_the_result(app: Celery, caplog: Any) -> None:
    @app.task(retry_on_result=lambda result: result["status"] == "pending")
    def poll() -> None: ...

    assert poll.apply().state == "SUCCESS"
    assert "retry_on_result raised, so the result stands" in caplog.text


def test_recover_returns_the_result_when_the_retries_are_used_up(app: Celery) -> None:
    seen: list[Failure] = []

    class Cached(ResilientTask):
        abstract = True
        failure_policy = SOON
        greeting = "from the cache"

        def recover(self, failure: Failure) -> str:
            seen.append(failure)
            return self.greeting

    runs = []

    @app.task(base=Cached)
    def fetch() -> None:
        runs.append(1)
        raise TransientError("away")

    assert fetch.apply().get() == "from the cache"
    assert len(runs) == 3
    (failure,) = seen
    assert (failure.attempt, failure.retries, str(failure.exception)) == (3, 2, "away")
    assert failure.verdict.kind == "transient"


def test_recover_may_be_a_function_of_the_failure_alone(app: Celery) -> None:
    @app.task(failure_policy=SOON, recover=lambda failure: [], retry_on_result=lambda r: r is None)
    def fetch() -> None: ...

    assert fetch.apply().get() == []


def test_past_the_deadline_and_past_self_retry_it_is_asked_too(app: Celery) -> None:
    @app.task(failure_policy=Policy(backoff=10, jitter="none", max_elapsed=15),
              recover=lambda failure: "late")  # fmt: skip
    def slow() -> None:
        raise TransientError

    @app.task(bind=True, max_retries=1, recover=lambda failure: "asked")
    def asks(self: Any) -> None:
        raise self.retry(exc=OSError("away"), countdown=0)

    assert slow.apply().get() == "late"
    assert asks.apply().get() == "asked"


def test_for_what_no_retry_can_help_it_is_not_asked(app: Celery) -> None:
    @app.task(failure_policy=SOON, recover=lambda failure: "fallback")
    def fetch() -> None:
        raise PermanentError("no such customer")

    assert isinstance(fetch.apply().result, PermanentError)


def test_failure_stands_if_recover_raises(app: Celery, caplog: Any) -> None:
    @app.task(failure_policy=SOON, recover=lambda failure: 1 / 0)
    def fetch() -> None:
        raise TransientError("away")

    result = fetch.apply()
    assert isinstance(result.result, TransientError)
    assert "recover raised; its failure stands" in caplog.text


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("recover", "fallback", "recover takes a plain function of the failure, got 'fallback'"),
        ("recover", lambda: 0, "recover takes a plain function of the failure, got <function"),
        ("retry_on_result", True, "retry_on_result takes a plain function of the result, got True"),
        ("retry_on_result", lambda a, b: 0, "retry_on_result takes a plain function of the result"),
    ],
)
def test_option_that_cannot_be_called_so_is_refused_when_the_task_is_defined(
    app: Celery, option: str, value: Any, said: str
) -> None:
    with pytest.raises(TypeError, match=f"shop.fetch: {said}"):

        @app.task(name="shop.fetch", lazy=False, **{option: value})
        def fetch() -> None: ...


def test_async_ones_are_refused(app: Celery) -> None:
    async def later(self: Any, failure: Failure) -> None: ...

    with pytest.raises(TypeError, match="recover takes a plain function of the failure, got an as"):

        @app.task(lazy=False, recover=later)
        def fetch() -> None: ...


def test_async_body_is_judged_by_what_it_returns(app: Celery) -> None:
    results = iter([1, 2])

    @app.task(failure_policy=SOON, retry_on_result=lambda result: result == 1)
    async def poll() -> int:
        return next(results)

    assert poll.apply().get() == 2


def test_switched_off_celerys_own_autoretry_is_back(app: Celery) -> None:
    runs = []

    @app.task(autoretry_for=(OSError,), max_retries=2, default_retry_delay=0)
    def fetch() -> None:
        runs.append(1)
        raise OSError("away")

    bare = fetch.run
    disable(app)
    assert fetch.run is not bare
    assert fetch._orig_run == bare
    disable(app)
    assert fetch._orig_run == bare, "twice is once"
