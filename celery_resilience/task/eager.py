"""Eager mode: ``.apply()`` and ``task_always_eager`` decide with the same policy as a worker.

Retries follow at once, without a sleep and without a broker; but the waits are added to the
message's age, so that a deadline ends what would otherwise go on for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_resilience.messages.history import History
from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.disabled import is_disabled

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions

__all__ = ["apply"]


@dataclass(frozen=True)
class _Again:
    """What Celery's ``apply`` finds on the Retry that it catches, and applies: the next attempt."""

    retries: int
    history: History
    args: Any
    kwargs: Any

    def apply(self, **options: Any) -> _Again:
        return self  # not from in here: a long series of retries is a loop, not a recursion


class _EagerAttempt(CurrentAttempt):
    """An attempt in the caller's own thread."""

    eager = True

    def __init__(self, at: float, task: Any, history: History) -> None:
        super().__init__(at, task)
        self.history = history

    def history_of(self, req: Any) -> History:
        return self.history

    def eager_retry(self, decision: RetryLater) -> _Again:
        began = self.at if self.history.first is None else self.history.first
        kept = self.context_levels()
        history = History(
            first=began - decision.delay,
            count=self.history.count + 1,
            context=self.history.context if kept is None else kept,
        )
        # The request's own: the body may have changed them for the next attempt.
        req = self.task.request
        return _Again((req.retries or 0) + decision.counted, history, req.args, req.kwargs)


def apply(task: TaskWithOptions, once: Callable[..., Any], retries: int | None) -> Any:
    """The EagerResult of *task*'s last attempt; *once*, given retries and, for the attempts after
    the first, arguments, is Celery's ``apply``."""
    if is_disabled(task.app):
        return once(retries)
    # The app's own, which Celery applies, may be another instance.
    running_task: Any = task.app.tasks.get(task.name, task)
    history = History()
    found = _apply(running_task, history, once, retries)
    while isinstance(found, _Again):
        found = _apply(running_task, found.history, once, found.retries, found.args, found.kwargs)
    return found


def _apply(task: Any, history: History, once: Callable[..., Any], *given: Any) -> Any:
    token = current_attempt.set(_EagerAttempt(time.time(), task, history))
    try:
        return once(*given)
    finally:
        current_attempt.reset(token)
