"""A retry that is asked for: by ``self.retry``, or by a Retry that is raised."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from celery import exceptions as _exceptions
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_resilience.policy.decision import RetryLater

__all__ = [
    "asked_by_raising",
    "is_sent",
    "make_retry",
    "seconds_to_wait",
    "unnoticed",
]

# The stubs know how it is raised, not how it is made.
Retry: Any = _exceptions.Retry


def make_retry(exc: BaseException, when: Any, **more: Any) -> Any:
    """The Retry that is raised for *exc*, by which the body has ended."""
    retry = Retry(exc=exc, when=when, **more)
    retry.__cause__ = exc
    return unnoticed(retry)


def unnoticed(exc: Any) -> Any:
    """*exc*, which New Relic is not to take for an error; Sentry knows Celery's control flow."""
    exc._nr_ignored = True
    return exc


def is_sent(retry: Any) -> bool:
    """Whether the message that *retry* tells of is on its way; a body can make a Retry itself, or
    have it from a task that it called as a function, or applied."""
    return retry.sig is not None and not retry.is_eager


def asked_by_raising(task: Any, req: Any, retry: Any) -> RetryLater | None:
    """What ``self.retry`` would have done; stock Celery lets the message go, and nothing comes.

    None: nothing, for its retries are used up, or the message is on its way.
    """
    limit = task.max_retries
    if is_sent(retry) or (limit is not None and (req.retries or 0) + 1 > limit):
        return None
    countdown = task.default_retry_delay if retry.when is None else retry.when
    eta = None if isinstance(countdown, (int, float, type(None))) else countdown
    delay = seconds_to_wait(eta, None if eta else countdown, task.app.timezone)
    return RetryLater(delay, rule="a Retry that it raised")


def seconds_to_wait(eta: Any, countdown: Any, zone: Any) -> float:
    """As for Celery, *countdown* wins over *eta*, which is a time or a text of it."""
    if countdown or not eta:
        return max(0.0, float(countdown or 0))
    due: Any = maybe_iso8601(eta)
    wait: timedelta = maybe_make_aware(due, zone) - datetime.now(timezone.utc)
    return max(0.0, wait.total_seconds())
