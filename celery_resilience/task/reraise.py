"""What is raised in the place of what a body has raised: a Retry, where the attempt goes on."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.task import Task
from celery.exceptions import Retry

from celery_resilience.classify.verdict import Kind
from celery_resilience.errors import BodyExited
from celery_resilience.messages.error_record import said
from celery_resilience.policy.decision import Drop, GiveUp, RetryLater
from celery_resilience.task.attempt import CurrentAttempt
from celery_resilience.task.context import hand_on
from celery_resilience.task.decide import GONE_ON, decide
from celery_resilience.task.requested_retry import (
    make_retry,
    refused,
    take_request,
    unnoticed,
)

__all__ = ["Discarded", "end_attempt", "exited"]

logger = logging.getLogger("celery_resilience")


class Discarded(Retry):
    """Stands for a failure that its owner does not want to hear of, until Celery is told.

    It is a Retry for those who wrap the body: what they know of is no error to report.
    """


def exited(exc: BaseException) -> BodyExited:
    """The error that stands for *exc*, which would end the process."""
    error = BodyExited(f"the body raised {type(exc).__name__}: {said(exc)}")
    error.__cause__ = exc
    return error


def end_attempt(task: Any, req: Any, exc: BaseException, attempt: CurrentAttempt) -> BaseException:
    """Decide about *attempt*, which has ended in *exc*; what is raised in its place.

    A Retry where it goes on, and *exc* itself where it does not.
    """
    decided = decide(attempt, req, exc)
    decision = None if decided is None else decided.decision
    raised: Any = exc
    if isinstance(decision, RetryLater) and not isinstance(exc, Retry):
        raised = _published_again(task, exc, decision, attempt)
        if raised is None:
            again = attempt.eager_retry(decision)
            raised = make_retry(exc, decision.delay, sig=again, is_eager=again is not None)
            if again is None and _is_autoretried(task, exc):
                take_request(task, attempt, decision, exc)
        else:  # a retry as Celery makes it: nothing is to be moved
            decided, attempt.published = None, True
    elif isinstance(decision, GiveUp) and isinstance(exc, Retry):
        raised = refused(task, req, exc)
    elif isinstance(decision, Drop) and _is_discarded(decided, decision):
        raised = Discarded(exc=exc)  # type: ignore[arg-type]
        unnoticed(raised).__cause__ = exc
    attempt.end(decided, raised)
    return raised  # type: ignore[no-any-return]


def _is_discarded(decided: Any, drop: Drop) -> bool:
    """Whether a rule or the task says so; trackers know what a task ``throws`` for themselves."""
    return drop is not GONE_ON and decided.verdict.kind is not Kind.EXPECTED


def _is_autoretried(task: Any, exc: BaseException) -> bool:
    """Whether Celery would have published the retry by now."""
    wanted, unwanted = (
        tuple(getattr(task, name, None) or ()) for name in ("autoretry_for", "dont_autoretry_for")
    )
    return isinstance(exc, wanted) and not isinstance(exc, unwanted)


def _published_again(task: Any, exc: Any, decision: RetryLater, attempt: CurrentAttempt) -> Any:
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
