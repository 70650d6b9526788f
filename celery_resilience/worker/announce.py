"""Telling Celery's world what became of an attempt, where the child could not tell it.

Results, signals, events and error callbacks are what they are in stock Celery; nothing that the
promise needs hangs on them.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard import einfo as _einfo
from billiard.exceptions import TimeLimitExceeded
from celery import exceptions as _exceptions
from celery import signals, states
from celery.utils.saferepr import saferepr

from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.einfo import RetryInfo
from celery_resilience.worker.background import Aside
from celery_resilience.worker.result_store import store_failure

__all__ = [
    "announce_failure",
    "announce_rejection",
    "announce_retry",
    "exception_of",
    "send_retried",
]

logger = logging.getLogger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
Retry: Any = _exceptions.Retry
einfo: Any = _einfo


def exception_of(exc_info: Any) -> BaseException:
    """The exception that a pool has returned."""
    exc = exc_info.retry if isinstance(exc_info, RetryInfo) else exc_info.exception
    if isinstance(exc, einfo.ExceptionWithTraceback):
        exc = exc.exc
    return exc if isinstance(exc, BaseException) else RuntimeError(str(exc))


def announce_retry(
    request: Any, exc: BaseException, exc_info: Any, outcome: AttemptResult, here: bool
) -> None:
    """*request* is retried; *here* tells that it was decided here, and Celery has not been told."""
    cause = getattr(exc, "exc", None) or exc
    if here:
        task, context = request._task, request._context
        assert isinstance(outcome.decision, RetryLater)
        reason = Retry(exc=cause, when=outcome.decision.delay)
        signals.task_retry.send(sender=task, request=context, reason=reason, einfo=exc_info)
        exc_info = RetryInfo(reason, None)
    request.on_retry(exc_info)


def send_retried(request: Any, exc_info: Any) -> None:
    """Send Celery's event of a retry, if there are listeners."""
    if _wants_events(request):
        cause = exception_of(exc_info).exc  # type: ignore[attr-defined]
        request.send_event(
            "task-retried", exception=saferepr(cause), traceback=str(exc_info.traceback)
        )


def announce_failure(
    request: Any, exc: BaseException, exc_info: Any, here: bool, send_event: bool
) -> None:
    """*request* has failed for good; *here* tells that it was decided here."""
    if here:
        task, context = request._task, request._context
        task.request_stack.push(context)
        try:
            _send_failure(request, exc, exc_info)
        finally:
            if isinstance(exc, TimeLimitExceeded):
                _call_hooks(request, exc, exc_info)
            task.request_stack.pop()
    if send_event and _wants_events(request):
        request.send_event(
            "task-failed", exception=saferepr(exc), traceback=str(exc_info.traceback)
        )


def announce_rejection(
    request: Any, aside: Aside, exc: BaseException, exc_info: Any, send_event: bool
) -> None:
    """The body of *request* has rejected its message: its state first, as Celery 5.7 does."""

    def reject(stored: Any) -> None:
        try:
            _send_failure(request, exc, exc_info)
            if send_event:
                request.send_event(
                    "task-failed", exception=saferepr(exc), traceback=str(exc_info.traceback)
                )
        finally:
            request.reject(requeue=False)

    store_failure(request, aside, exc, reject)


def _send_failure(request: Any, exc: BaseException, exc_info: Any) -> None:
    signals.task_failure.send(
        sender=request._task, task_id=request.id, exception=exc, args=request.args,
        kwargs=request.kwargs, traceback=exc_info.traceback, einfo=exc_info,
    )  # fmt: skip


def _call_hooks(request: Any, exc: BaseException, exc_info: Any) -> None:
    """As Celery does, here, for a hard time limit: the process that ran the body is gone."""
    task, args = request._task, (request.id, request.args, request.kwargs)
    try:
        task.on_failure(exc, *args, exc_info)
        task.after_return(states.FAILURE, exc, *args, None)
    except Exception:
        logger.exception("%s[%s]: on_failure or after_return raised", request.name, request.id)


def _wants_events(request: Any) -> bool:
    eventer = request._eventer
    return bool(eventer and eventer.enabled and request._task.send_events)
