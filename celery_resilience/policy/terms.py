"""The limits and waits that a failed attempt is under, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from celery_resilience.classify.verdict import Kind
from celery_resilience.policy.backoff import Backoff
from celery_resilience.policy.callables import backoff_delay, own_delay
from celery_resilience.policy.decision import Decision, Failure, GiveUp, Reason, RetryLater

__all__ = ["LEAST_UNCOUNTED_DELAY", "LONGEST_DELAY", "Terms", "give_up", "retry"]

#: No retry waits longer, whatever a server asks for: a year is a typing error, or a joke.
LONGEST_DELAY = 365 * 86400.0
#: No uncounted retry comes sooner: nothing but time ends a series of them.
LEAST_UNCOUNTED_DELAY = 1.0


@dataclass(frozen=True)
class Terms:
    """The limits and waits of one rule, with the policy's own where the rule gives none."""

    max_retries: int | None
    max_elapsed: float | None
    backoff: Backoff
    #: The rule's own delay in seconds, or the user's function for it; None for the backoff.
    delay: float | Callable[[Any], Any] | None = None
    #: None: counted, unless the verdict is a rate limit.
    counted: bool | None = None
    #: Whether a verdict's lower ``max_retries`` counts: not against a rule that names its own.
    yields_to_verdict: bool = True


def retry(
    failure: Failure, terms: Terms, title: str, random: Random, call_user_code: bool
) -> Decision:
    """Another attempt after *failure*, if *terms* allow one; *title* names the rule that asks."""
    verdict = failure.verdict
    counted = verdict.kind is not Kind.RATE_LIMITED if terms.counted is None else terms.counted
    if counted:
        limits = [terms.max_retries, verdict.max_retries if terms.yields_to_verdict else None]
        if any(limit is not None and failure.retries >= limit for limit in limits):
            return give_up(failure, Reason.EXHAUSTED, title)
        # Uncounted retries in between must not make the counted ones wait longer.
        attempt = failure.retries + 1
    else:
        attempt = failure.attempt
    delay = terms.delay
    if callable(delay):
        delay = own_delay(delay, title, failure) if call_user_code else None
    if delay is None:
        attempt = max(attempt, 1)
        delay = backoff_delay(terms.backoff, attempt, title, failure, random, call_user_code)
    if not counted:
        delay = max(delay, LEAST_UNCOUNTED_DELAY)
    # Written so that a NaN, which a foreign header may hold, gives up instead of going on.
    if failure.expires_in is not None and not delay < failure.expires_in:
        return GiveUp(Reason.EXPIRED, title)
    late = terms.max_elapsed is not None and not failure.age + delay <= terms.max_elapsed
    if late or not delay <= LONGEST_DELAY:
        return give_up(failure, Reason.DEADLINE, title)
    return RetryLater(delay, counted, title)


def give_up(failure: Failure, reason: Reason, title: str, queue: str | None = None) -> GiveUp:
    """A dead letter, for *reason* unless the *failure* has one of its own."""
    return GiveUp(reason if failure.reason is None else failure.reason, title, queue)
