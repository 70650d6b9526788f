"""What counts as a task's result: one that is good enough, or a fallback's.

The body of a task that states ``retry_on_result`` or ``recover`` is wrapped when it is defined;
the bodies of all others are left as they are.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

from celery_resilience.classify import is_control_flow
from celery_resilience.decision import GiveUp, Reason
from celery_resilience.errors import UnacceptableResult
from celery_resilience.ruling import Running, failure_of, rule_on, running

if TYPE_CHECKING:
    from celery_resilience.task import ResilientTask

__all__ = ["watch_result"]

logger = logging.getLogger("celery_resilience")

#: What a fallback is for: every retry that was allowed has failed. An exception that no retry
#: could help, a time limit or an ``expires`` that has passed is not.
_USED_UP = (Reason.EXHAUSTED, Reason.DEADLINE)
_SHOWN = 200


def watch_result(cls: type[ResilientTask]) -> None:
    """Let the task *cls* be retried on a result that its ``retry_on_result`` does not accept, and
    end in what its ``recover`` returns when its retries are used up.

    A direct call stays one of the bare function. Raises TypeError for what can't be called so.
    """
    predicate, recover = (_stated(cls, name) for name in ("retry_on_result", "recover"))
    if predicate is None and recover is None:
        return
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
    _wrap(cls)


def _stated(cls: type, name: str) -> Any:
    value = inspect.getattr_static(cls, name, None)
    return value.__func__ if isinstance(value, staticmethod) else value


def _wrap(cls: type[ResilientTask]) -> None:
    stated = inspect.getattr_static(cls, "run")
    if getattr(stated, "watches_result", False):
        return
    is_static = isinstance(stated, staticmethod)
    body: Any = stated.__func__ if is_static else stated

    @functools.wraps(body)
    def run(self: ResilientTask, *args: Any, **kwargs: Any) -> Any:
        attempt = running.get()
        given = args if is_static else (self, *args)
        if attempt is None or self.request.called_directly:
            return body(*given, **kwargs)
        try:
            result = body(*given, **kwargs)
            if self.retry_on_result is not None and _refused(self, result):
                raise UnacceptableResult(f"not good enough: {_shown(result)}")
        except Exception as exc:
            if self.recover is None or is_control_flow(exc):
                raise
            found = _fallback(self, exc, attempt)
            if found is None:
                raise
            return found[0]
        return result

    run.__dict__["watches_result"] = True
    cls.run = run  # type: ignore[assignment,method-assign]


def _refused(task: ResilientTask, result: Any) -> bool:
    try:
        return bool(task.retry_on_result(result))
    except Exception:
        logger.exception("%s: retry_on_result raised, so the result stands", task.name)
        return False


def _fallback(task: ResilientTask, exc: Exception, attempt: Running) -> tuple[Any] | None:
    """The result that stands in for the attempt that ended in *exc*; None if it has failed."""
    request = task.request
    attempt.outcome = outcome = rule_on(task, request, exc, attempt)
    decision = None if outcome is None else outcome.decision
    if not isinstance(decision, GiveUp) or decision.reason not in _USED_UP:
        return None
    failure = failure_of(task, exc, attempt.history_of(request), retries=request.retries or 0,
                         began=attempt.at, expires=request.expires)  # fmt: skip
    try:
        result = task.recover(failure)
    except Exception:
        logger.exception("%s[%s]: recover raised; its failure stands", task.name, request.id)
        return None
    attempt.outcome = None
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


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__} whose repr fails"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
