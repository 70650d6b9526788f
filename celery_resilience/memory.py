"""Where a body finds what the attempts before it have left: ``self.context``.

It is read from the message when the body first asks for it, and put back by the settlement. A
task that is sent meanwhile is given it as its parent's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery import signals

from celery_resilience.context import RetryContext
from celery_resilience.headers import HEADER
from celery_resilience.history import History
from celery_resilience.ruling import running

__all__ = ["context_of"]

_KEY = "resilience_context"
_UID = "celery_resilience.memory"


def context_of(task: Any) -> RetryContext:
    """The context of the attempt of *task* that is under way; one that nobody keeps in a direct
    call, and where stock Celery decides."""
    attempt, request = running.get(), task.request
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


def _send_along(headers: Any = None, **kwargs: Any) -> None:
    """Give a message that is about to be published the context of the task that publishes it."""
    attempt = running.get()
    if attempt is None or attempt.context is None or not isinstance(headers, dict):
        return
    levels, history = attempt.context_levels(), History.loads(headers.get(HEADER))
    if levels is None:
        return
    # The retry that a body asks for with new arguments is a new message of the same task.
    if headers.get("id") == attempt.task_id:
        headers[HEADER] = replace(history, context=levels).dumps()
    elif headers.get(HEADER) is None:
        context = tuple(RetryContext(levels).below())
        if any(context):
            headers[HEADER] = History(context=context).dumps()
