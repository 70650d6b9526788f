"""What counts as a task's result: one that is good enough, or a fallback's."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from celery_resilience.classify.foreign import let_through, log_raised, shown
from celery_resilience.errors import UnacceptableResult
from celery_resilience.policy.decision import GiveUp, Reason
from celery_resilience.task.attempt import CurrentAttempt
from celery_resilience.task.decide import failure_of

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions

__all__ = ["check_result_options", "fallback", "refuse_result"]

logger = logging.getLogger("celery_resilience")

#: What a fallback is for: every retry that was allowed has failed. An exception that no retry
#: could help, a time limit or an ``expires`` that has passed is not.
_USED_UP = (Reason.EXHAUSTED, Reason.DEADLINE)
_SHOWN = 200


def check_result_options(cls: type[TaskWithOptions]) -> None:
    """Make ``retry_on_result`` and ``recover`` of the task *cls* what its body calls.

    Raises TypeError for what can't be called so.
    """
    predicate, recover = (_stated(cls, name) for name in ("retry_on_result", "recover"))
    if predicate is not None:
        _refuse_uncallable(cls, "retry_on_result", predicate, "the result")
        cls.retry_on_result = staticmethod(predicate)
    if recover is not None:
        if not _takes(recover, 2):
            _refuse_uncallable(cls, "recover", recover, "the failure")
            recover = staticmethod(recover)
        elif inspect.iscoroutinefunction(recover):
            raise _uncallable(cls, "recover", recover, "the failure")
        cls.recover = recover


def _stated(cls: type, name: str) -> Any:
    value = inspect.getattr_static(cls, name, None)
    return value.__func__ if isinstance(value, staticmethod) else value


def refuse_result(task: TaskWithOptions, result: Any) -> None:
    """Raise UnacceptableResult for a *result* that *task*'s ``retry_on_result`` refuses."""
    try:
        refused = bool(task.retry_on_result(result))
    except BaseException as exc:
        let_through(exc)
        log_raised(logger, exc, "%s: retry_on_result raised, so the result stands", task.name)
        return
    if refused:
        raise UnacceptableResult(f"not good enough: {shown(result, _SHOWN)}")


def fallback(attempt: CurrentAttempt, exc: BaseException) -> tuple[Any] | None:
    """The result that stands in for the *attempt* that failed with *exc*; None: it has failed."""
    task = attempt.task
    decision = None if attempt.decided is None else attempt.decided.decision
    if task.recover is None or not isinstance(decision, GiveUp) or decision.reason not in _USED_UP:
        return None
    request: Any = task.request
    failure = failure_of(task, exc, attempt.history_of(request), attempt.at,
                         retries=request.retries, expires=request.expires)  # fmt: skip
    try:
        result = task.recover(failure)
    except BaseException as problem:
        let_through(problem)
        what = "%s[%s]: recover raised; its failure stands"
        log_raised(logger, problem, what, task.name, request.id)
        return None
    attempt.end(None, None)
    logger.warning(
        "%s[%s]: %s after %d attempts (%s): the result is what recover returned",
        task.name, request.id, decision.reason, failure.attempt, type(exc).__name__,
    )  # fmt: skip
    return (result,)


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_uncallable(cls: type, option: str, value: Any, of: str) -> None:
    if not callable(value) or inspect.iscoroutinefunction(value) or not _takes(value, 1):
        raise _uncallable(cls, option, value, of)


def _uncallable(cls: type, option: str, value: Any, of: str) -> TypeError:
    name = getattr(cls, "name", None) or cls.__name__
    kind = "an async def" if inspect.iscoroutinefunction(value) else repr(value)
    return TypeError(f"{name}: {option} takes a plain function of {of}, got {kind}")
