"""Eager mode: the same policy decides, at once; stock Celery's behaviour is the measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry

from celery_resilience import (
    Discard,
    PermanentError,
    Policy,
    RateLimitedError,
    ResilientTask,
    Snooze,
    TransientError,
    on,
)

STOCK_AND_OURS = pytest.mark.parametrize("base", [Task, ResilientTask], ids=["stock", "ours"])


@pytest.fixture
def app() -> Celery:
    return Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)


@pytest.fixture
def calls() -> list[Any]:
    """What the bodies and the hooks have noted."""
    return []


class Flop(ValueError):
    """What the bodies raise."""


@pytest.fixture
def define(app: Celery, calls: list[Any]) -> Callable[..., Any]:
    """``define(base, body, **options)``: a task that notes its retries and its hooks."""

    def make(base: type, body: Callable[[Any], Any], **options: Any) -> Any:
        class Noted(base):  # type: ignore[misc]
            abstract = True
            default_retry_delay = 0

            def on_retry(self, exc: Any, *args: Any) -> None:
                calls.append(("on_retry", type(exc).__name__))

            def on_failure(self, exc: Any, *args: Any) -> None:
                calls.append(("on_failure", type(exc).__name__))

            def on_success(self, retval: Any, *args: Any) -> None:
                calls.append(("on_success", retval))

        def noted(self: Any) -> Any:
            calls.append(self.request.retries)
            return body(self)

        return app.task(noted, base=Noted, bind=True, name="shop.noted", **options)

    return make


def flops_until(retries: int) -> Callable[[Any], Any]:
    def body(self: Any) -> str:
        if self.request.retries < retries:
            raise Flop("not yet")
        return "done"

    return body


# As stock Celery


@STOCK_AND_OURS
def test_autoretry_goes_on_at_once_until_it_succeeds(
    base: type, define: Callable[..., Any], calls: list[Any]
) -> None:
    result = define(base, flops_until(2), autoretry_for=(Flop,), retry_backoff=60).apply()
    assert (result.state, result.get()) == ("SUCCESS", "done")
    assert calls == [0, ("on_retry", "Flop"), 1, ("on_retry", "Flop"), 2, ("on_success", "done")]


@STOCK_AND_OURS
def test_used_up_it_is_a_failure(base: type, define: Callable[..., Any], calls: list[Any]) -> None:
    result = define(base, flops_until(9), autoretry_for=(Flop,), max_retries=1).apply()
    assert (result.state, type(result.result)) == ("FAILURE", Flop)
    assert "not yet" in result.traceback
    assert calls == [0, ("on_retry", "Flop"), 1, ("on_failure", "Flop")]


@STOCK_AND_OURS
def test_exception_that_is_not_named_is_a_failure(
    base: type, define: Callable[..., Any], calls: list[Any]
) -> None:
    result = define(base, flops_until(1), autoretry_for=(KeyError,)).apply()
    assert (result.state, calls) == ("FAILURE", [0, ("on_failure", "Flop")])


@STOCK_AND_OURS
def test_asking_for_a_retry(base: type, define: Callable[..., Any], calls: list[Any]) -> None:
    def body(self: Any) -> str:
        if self.request.retries < 2:
            raise self.retry(exc=Flop("not yet"), countdown=60)
        return "done"

    assert define(base, body).apply().get() == "done"
    assert calls == [0, ("on_retry", "Flop"), 1, ("on_retry", "Flop"), 2, ("on_success", "done")]


@STOCK_AND_OURS
@pytest.mark.parametrize("exc", [None, TransientError("not yet")], ids=["nothing", "transient"])
def test_asking_once_too_often_is_a_failure(
    base: type, exc: Any, define: Callable[..., Any], calls: list[Any]
) -> None:
    """What is raised then is not judged again, however transient it is."""

    def body(self: Any) -> Any:
        raise self.retry(exc=exc, max_retries=1)

    result = define(base, body).apply()
    assert result.state == "FAILURE"
    assert type(result.result) is (MaxRetriesExceededError if exc is None else TransientError)
    assert [call for call in calls if isinstance(call, int)] == [0, 1]


@STOCK_AND_OURS
@pytest.mark.parametrize(("control", "state"), [(Ignore(), "IGNORED"), (Reject(), "REJECTED")])
def test_control_flow_is_no_failure(
    base: type, control: Exception, state: str, define: Callable[..., Any], calls: list[Any]
) -> None:
    def body(self: Any) -> Any:
        raise control

    assert define(base, body).apply().state == state
    assert calls == [0]


@STOCK_AND_OURS
def test_propagating_raises_the_failure(base: type, define: Callable[..., Any]) -> None:
    with pytest.raises(Flop, match="not yet"):
        define(base, flops_until(9)).apply(throw=True)


@STOCK_AND_OURS
def test_propagating_raises_the_first_retry(
    base: type, app: Celery, define: Callable[..., Any], calls: list[Any]
) -> None:
    """Celery's quirk, and its users' tests expect it."""
    app.conf.task_always_eager = app.conf.task_eager_propagates = True
    with pytest.raises(Retry) as caught:
        define(base, flops_until(1), autoretry_for=(Flop,)).delay()
    assert isinstance(caught.value.exc, Flop)
    assert calls == [0]


@STOCK_AND_OURS
def test_always_eager(base: type, app: Celery, define: Callable[..., Any]) -> None:
    app.conf.task_always_eager = True
    task = define(base, flops_until(2), autoretry_for=(Flop,))
    result = task.apply_async(task_id="an-id")
    assert (result.id, result.get()) == ("an-id", "done")


@STOCK_AND_OURS
def test_stored_result_is_that_of_the_last_attempt(
    base: type, app: Celery, define: Callable[..., Any]
) -> None:
    app.conf.update(task_always_eager=True, task_store_eager_result=True)
    result = define(base, flops_until(9), autoretry_for=(Flop,), max_retries=1).delay()
    assert app.AsyncResult(result.id).state == "FAILURE"


@STOCK_AND_OURS
def test_direct_call_is_one_of_the_bare_function(
    base: type, define: Callable[..., Any], calls: list[Any]
) -> None:
    """Before and after it has been applied eagerly; from inside of an eager body, too."""
    task = define(base, flops_until(1), autoretry_for=(Flop,))
    with pytest.raises(Flop):
        task()
    task.apply()
    with pytest.raises(Flop):
        task()

    @task.app.task(base=base, name="shop.outer")
    def outer() -> Any:
        return task()

    assert type(outer.apply().result) is Flop
    assert calls.count(("on_retry", "Flop")) == 1


@STOCK_AND_OURS
def test_exit_goes_through(base: type, define: Callable[..., Any]) -> None:
    def body(self: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        define(base, body, autoretry_for=(Flop,)).apply()


# What only ours has


def test_classifier_decides_for_a_base_chosen_by_hand(
    define: Callable[..., Any], calls: list[Any]
) -> None:
    def body(self: Any) -> str:
        if self.request.retries < 2:
            raise ConnectionError("away")
        return "done"

    assert define(ResilientTask, body).apply().get() == "done"
    assert calls[0::2] == [0, 1, 2]


@pytest.mark.parametrize("error", [PermanentError("no"), Discard("cancelled"), TypeError("a bug")])
def test_permanent_error_is_a_failure_at_once(
    error: Exception, define: Callable[..., Any], calls: list[Any]
) -> None:
    def body(self: Any) -> Any:
        raise error

    assert define(ResilientTask, body).apply().state == "FAILURE"
    assert len(calls) == 2


def test_rules_decide(define: Callable[..., Any], calls: list[Any]) -> None:
    policy = Policy(on(Flop).retry(max_retries=1), on(ConnectionError).dead_letter())
    define(ResilientTask, flops_until(9), failure_policy=policy).apply()
    assert [call for call in calls if isinstance(call, int)] == [0, 1]


@pytest.mark.parametrize(
    "error",
    [lambda: RateLimitedError("slow down"), lambda: Snooze(3600)],
    ids=["limited", "snooze"],
)
def test_uncounted_retries_end_at_the_deadline_though_nobody_sleeps(
    error: Callable[[], Exception], define: Callable[..., Any], calls: list[Any]
) -> None:
    """The waits are added up; and a long series is no deep recursion."""

    def body(self: Any) -> Any:
        raise error()

    result = define(ResilientTask, body).apply()
    assert result.state == "FAILURE"
    retries = [call for call in calls if isinstance(call, int)]
    assert len(retries) > 20
    assert set(retries) == {0}


def test_task_that_is_applied_inside_of_another_is_judged_for_itself(
    app: Celery, define: Callable[..., Any], calls: list[Any]
) -> None:
    inner = define(ResilientTask, flops_until(1), autoretry_for=(Flop,))

    @app.task(base=ResilientTask, name="shop.outer")
    def outer() -> Any:
        return inner.apply().get()

    assert outer.apply().get() == "done"
    assert len([call for call in calls if isinstance(call, int)]) == 2


@STOCK_AND_OURS
def test_next_attempt_finds_what_the_last_one_has_changed(
    app: Celery, base: type, calls: list[Any]
) -> None:
    @app.task(base=base, bind=True, autoretry_for=(Flop,), max_retries=5, default_retry_delay=0)
    def pages(self: Any, left: list[int], page: int = 0) -> str:
        calls.append((list(left), page))
        if left:
            left.pop()
            self.request.kwargs = {"page": page + 1}
            raise Flop("more")
        return "all"

    assert pages.apply(([1, 2, 3],)).get() == "all"
    assert calls == [([1, 2, 3], 0), ([1, 2], 1), ([1], 2), ([], 3)]
