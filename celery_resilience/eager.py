"""Eager mode: ``.apply()`` and ``task_always_eager`` decide with the same policy as a worker.

Retries follow at once, nobody sleeps and no broker is asked; but the waits are added to the
message's age, so that a deadline ends what would otherwise go on for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_resilience.asking import make_retry
from celery_resilience.classify import is_control_flow
from celery_resilience.decision import Drop, RetryLater
from celery_resilience.history import History
from celery_resilience.outcome import Outcome
from celery_resilience.ruling import Running, running
from celery_resilience.switch import is_off

if TYPE_CHECKING:
    from celery_resilience.task import ResilientTask

__all__ = ["apply"]


@dataclass(frozen=True)
class _Again:
    """What Celery's ``apply`` finds on the Retry that it catches, and applies: the next attempt."""

    retries: int
    history: History

    def apply(self, **options: Any) -> _Again:
        return self  # not from in here: a long series of retries is a loop, not a recursion


class _Eager(Running):
    """An attempt under way in the caller's own thread."""

    def __init__(self, at: float, task: Any, history: History) -> None:
        super().__init__(at, task)
        self.history = history

    def history_of(self, req: Any) -> History:
        return self.history

    def decide(self, req: Any, exc: BaseException) -> Outcome | None:
        if is_control_flow(exc):
            return None
        outcome = super().decide(req, exc)
        # Nothing is left behind, so a failure that is dropped is one like any other.
        return None if outcome is None or isinstance(outcome.decision, Drop) else outcome

    def again(self, exc: BaseException, decision: RetryLater) -> Any:
        began = self.at if self.history.first is None else self.history.first
        kept = self.context_levels()
        history = History(
            first=began - decision.delay,
            count=self.history.count + 1,
            context=self.history.context if kept is None else kept,
        )
        again = _Again((self.task.request.retries or 0) + decision.counted, history)
        return make_retry(exc, decision.delay, is_eager=True, sig=again)


def apply(task: ResilientTask, once: Callable[[int | None], Any], retries: int | None) -> Any:
    """The EagerResult of *task*'s last attempt; *once*, given retries, is Celery's ``apply``."""
    if is_off(task.app):
        return once(retries)
    # The app's own, which Celery applies, may be another instance.
    running_task: Any = task.app.tasks.get(task.name, task)
    history = History()
    while True:
        token = running.set(_Eager(time.time(), running_task, history))
        try:
            result = once(retries)
        finally:
            running.reset(token)
        if not isinstance(result, _Again):
            return result
        retries, history = result.retries, result.history
