"""A retry that is asked for: by ``self.retry``, by a Retry that is raised, by ``retry_kwargs``."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import exceptions as _exceptions
from celery.app.task import Task
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_resilience.policy.decision import RetryLater

__all__ = [
    "asked_by_raising",
    "is_sent",
    "make_retry",
    "published_anew",
    "seconds_to_wait",
    "unnoticed",
]

logger = logging.getLogger("celery_resilience")

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


def published_anew(task: Any, exc: Any, decision: RetryLater, attempt: Any) -> Any:
    """The Retry of a task whose ``retry_kwargs`` change what is sent; None: it stays as it is."""
    if not getattr(task, "autoretry_for", ()):
        return None
    words = {
        name: value
        for name, value in (getattr(task, "retry_kwargs", None) or {}).items()
        if name not in ("countdown", "exc", "max_retries", "throw")
    }
    if not words:
        return None
    from celery_resilience.task.context import hand_on  # which stands on this module

    hand_on(attempt, task.request, exc, decision)
    try:
        retry: Any = Task.retry(
            task, exc=exc, countdown=decision.delay, max_retries=task.request.retries + 1,
            throw=False, **words,
        )  # fmt: skip
    except Exception:
        logger.exception("%s: its retry_kwargs could not be followed", task.name)
        return None
    retry.__cause__ = exc
    return unnoticed(retry)


def seconds_to_wait(eta: Any, countdown: Any, zone: Any) -> float:
    """As for Celery, *countdown* wins over *eta*, which is a time or a text of it."""
    if countdown or not eta:
        return max(0.0, float(countdown or 0))
    due: Any = maybe_iso8601(eta)
    wait: timedelta = maybe_make_aware(due, zone) - datetime.now(timezone.utc)
    return max(0.0, wait.total_seconds())
