"""Where a body finds what the attempts before it have left: ``self.context``.

It is read from the message when the body first asks for it, and written back by the settlement. A
task that is sent meanwhile is given it as its parent's. A new message of the same task, as
``self.retry`` with new arguments makes one, is given all that lies behind it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from celery import signals
from celery.exceptions import Retry

from celery_resilience.classify.verdict import Kind
from celery_resilience.messages.context import RetryContext
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History, clipped
from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import CurrentAttempt, current_attempt

__all__ = ["context_of", "hand_on"]

_KEY = "resilience_context"
_UID = "celery_resilience.task.context"


def context_of(task: Any) -> RetryContext:
    """The context of the current attempt of *task*; one that is not kept in a direct
    call, and where stock Celery decides."""
    attempt, request = current_attempt.get(), task.request
    if attempt is None or request.called_directly:
        kept: RetryContext = request.__dict__.setdefault(_KEY, RetryContext())
        return kept
    if attempt.context is None:
        # Only now: an app that uses no context publishes without asking for it.
        signals.before_task_publish.connect(_send_along, weak=False, dispatch_uid=_UID)
        kept_by_key = () if attempt.stored is None else attempt.stored()
        attempt.context = RetryContext(kept_by_key or attempt.history_of(request).context)
        attempt.task_id = request.id
    return attempt.context


def hand_on(attempt: CurrentAttempt, req: Any, exc: Any, later: RetryLater) -> None:
    """Let the new message of the same task that is about to be published, for another try of
    *attempt*, know of it and of those before it."""
    signals.before_task_publish.connect(_send_along, weak=False, dispatch_uid=_UID)
    history = attempt.history_of(req)
    cause = exc if isinstance(exc, BaseException) else Retry(exc)
    error = ErrorRecord.of(cause, with_traceback=False)
    ended = Attempt(
        number=history.count + 1,
        at=attempt.at,
        ran=round(max(0.0, time.time() - attempt.at), 6),
        worker=str(req.hostname or ""),
        error=error.error,
        message=clipped(error.message),
        kind=Kind.UNKNOWN.value,
        rule=later.rule,
        delay=round(later.delay, 6),
    )
    attempt.task_id, attempt.following = req.id, history.add(ended)


def _send_along(headers: Any = None, **kwargs: Any) -> None:
    """Give a message that is about to be published what the task that publishes it knows: its
    context as its parent's, or all that lies behind it if it is to go on in that message."""
    attempt = current_attempt.get()
    if attempt is None or not isinstance(headers, dict):
        return
    levels = None if attempt.context is None else attempt.context_levels()
    if headers.get("id") == attempt.task_id:
        history = attempt.following or History.loads(headers.get(HEADER))
        if levels is not None:
            history = replace(history, context=levels)
        headers[HEADER] = history.dumps()
    elif levels is not None and headers.get(HEADER) is None:
        context = tuple(RetryContext(levels).below())
        if any(context):
            headers[HEADER] = History(context=context).dumps()
