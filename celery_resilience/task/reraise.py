"""What is raised in the place of what a body has raised: a Retry, where the attempt goes on."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.task import Task
from celery.exceptions import Retry

from celery_resilience.classify.verdict import Kind
from celery_resilience.policy.decision import Drop, GiveUp, RetryLater
from celery_resilience.task.context import hand_on
from celery_resilience.task.decide import GONE_ON, Running
from celery_resilience.task.requested_retry import unnoticed

__all__ = ["Discarded", "what_stands"]

logger = logging.getLogger("celery_resilience")


class Discarded(Retry):
    """Stands for a failure that its owner does not want to hear of, until Celery is told.

    It is a Retry for those who wrap the body: what they know of is no error to report.
    """


def what_stands(task: Any, req: Any, exc: BaseException, attempt: Running) -> BaseException:
    """Decide about *attempt*, which has ended in *exc*; what is raised in its place.

    A Retry where it goes on, and *exc* itself where it does not.
    """
    attempt.outcome = outcome = attempt.decide(req, exc)
    decision = None if outcome is None else outcome.decision
    stands: Any = exc
    if isinstance(decision, RetryLater) and not isinstance(exc, Retry):
        stands = _published_anew(task, exc, decision, attempt)
        if stands is None:
            stands = attempt.again(exc, decision)
        else:  # a retry as Celery makes it: nothing is to be moved
            attempt.outcome, attempt.published = None, True
    elif isinstance(decision, GiveUp) and isinstance(exc, Retry):
        stands = exc.exc or task.MaxRetriesExceededError(
            f"{task.name}[{req.id}] raised a Retry: its retries are used up"
        )
    elif isinstance(decision, Drop) and _is_discarded(outcome, decision):
        stands = Discarded(exc=exc)  # type: ignore[arg-type]
        unnoticed(stands).__cause__ = exc
    attempt.stands = stands
    return stands  # type: ignore[no-any-return]


def _is_discarded(outcome: Any, drop: Drop) -> bool:
    """Whether the owner has said so; a failure that he ``throws`` trackers know for themselves."""
    return drop is not GONE_ON and outcome.verdict.kind is not Kind.EXPECTED


def _published_anew(task: Any, exc: Any, decision: RetryLater, attempt: Any) -> Any:
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
