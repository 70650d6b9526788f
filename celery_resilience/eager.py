"""Eager mode: ``.apply()`` and ``task_always_eager`` decide with the same policy as a worker.

Retries follow at once, nobody sleeps and no broker is asked; but the waits are added to the
message's age, so that a deadline ends what would otherwise go on for ever.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import exceptions as _exceptions

from celery_resilience.classify import is_control_flow
from celery_resilience.decision import RetryLater
from celery_resilience.history import History
from celery_resilience.ruling import Running, judge, published_anew, running
from celery_resilience.switch import is_off

if TYPE_CHECKING:
    from celery_resilience.task import ResilientTask

__all__ = ["apply"]

# The stubs know how it is raised, not how it is made.
Retry: Any = _exceptions.Retry

_lock = threading.Lock()


@dataclass(frozen=True)
class _Again:
    """What Celery's ``apply`` finds on the Retry that it catches, and applies: the next attempt."""

    retries: int
    history: History

    def apply(self, **options: Any) -> _Again:
        return self  # not from in here: a long series of retries is a loop, not a recursion


class _Eager(Running):
    """An attempt under way in the caller's own thread."""

    def __init__(self, at: float, history: History) -> None:
        super().__init__(at)
        self.history = history

    def history_of(self, req: Any) -> History:
        return self.history


def apply(task: ResilientTask, once: Callable[[int | None], Any], retries: int | None) -> Any:
    """The EagerResult of *task*'s last attempt; *once*, given retries, is Celery's ``apply``."""
    if is_off(task.app):
        return once(retries)
    _judge_its_failures(task)
    history = History()
    while True:
        token = running.set(_Eager(time.time(), history))
        try:
            result = once(retries)
        finally:
            running.reset(token)
        if not isinstance(result, _Again):
            return result
        retries, history = result.retries, result.history


def _judge_its_failures(task: ResilientTask) -> None:
    """Wrap the body of *task*, once, as Celery's autoretry does.

    Only where it is applied eagerly: a worker has built its tracer around the bare body.
    """
    with _lock:
        if task.__dict__.get("_judged_eagerly"):
            return
        task.__dict__["_judged_eagerly"] = True
        body = task.run

        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            attempt, request = running.get(), task.request
            if not isinstance(attempt, _Eager) or request.called_directly or not request.is_eager:
                return body(*args, **kwargs)
            try:
                return body(*args, **kwargs)
            except Exception as exc:
                if is_control_flow(exc) or exc is attempt.exhausted:
                    raise
                retry = _retry(task, request.retries or 0, exc, attempt)
                if retry is None:
                    raise
                raise retry from exc

        task.__dict__["run"] = run


def _retry(task: ResilientTask, retries: int, exc: Exception, attempt: _Eager) -> Any:
    """Celery's Retry if the policy wants another attempt, else None."""
    if attempt.outcome is None:
        _, decision = judge(task, exc, attempt.history, retries=retries, began=attempt.at)
    else:  # whoever looked for a fallback has asked already
        decision = attempt.outcome.decision
    if not isinstance(decision, RetryLater):
        return None
    anew = published_anew(task, exc, decision)
    if anew is not None:
        return anew  # Celery applies it
    began = attempt.at if attempt.history.first is None else attempt.history.first
    kept = attempt.context_levels()
    history = History(
        first=began - decision.delay,
        count=attempt.history.count + 1,
        context=attempt.history.context if kept is None else kept,
    )
    again = _Again(retries + decision.counted, history)
    return Retry(exc=exc, when=decision.delay, is_eager=True, sig=again)
