"""The functions that a policy was given, called so that what is wrong with them cannot hurt.

A failing ``when=`` means no match; a failing ``delay=`` or shape leaves it to the backoff. Each
says so in the log, with the task, the rule and what was got.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from logging import getLogger
from random import Random
from typing import Any

from celery_resilience.classify.foreign import let_through, shown
from celery_resilience.policy.backoff import Backoff, checked_number
from celery_resilience.policy.decision import Failure
from celery_resilience.policy.rules import Rule

__all__ = ["backoff_delay", "matches", "own_delay", "seconds_of"]

#: The name that a user may have set a level or a handler for.
logger = getLogger("celery_resilience.user_code")

_SHOWN = 80


def matches(rule: Rule, title: str, failure: Failure, call_user_code: bool) -> bool:
    """Whether *rule* is for the exception of *failure*, its condition included."""
    if not rule.covers(type(failure.exception)):
        return False
    if rule.when is None:
        return True
    if not call_user_code:
        return False
    try:
        return bool(rule.when(failure.exception))
    except BaseException as exc:
        let_through(exc)
        _warn(failure, title, f"when= raised {shown(exc, _SHOWN)}, so the rule does not match", exc)
        return False


def own_delay(function: Callable[[Any], Any], title: str, failure: Failure) -> float | None:
    """The seconds that a rule's ``delay=`` function returns, None if it has no good answer."""
    try:
        value = function(failure.exception)
    except BaseException as exc:
        let_through(exc)
        _warn(failure, title, f"delay= raised {shown(exc, _SHOWN)}, so the backoff is used", exc)
        return None
    seconds = seconds_of(value)
    if seconds is None:
        text = f"delay= returned {shown(value, _SHOWN)}, which is no delay, so the backoff is used"
        _warn(failure, title, text)
    return seconds


def backoff_delay(
    backoff: Backoff,
    attempt: int,
    title: str,
    failure: Failure,
    random: Random,
    call_user_code: bool,
) -> float:
    """The wait that *backoff* gives, in the exponential shape if its own function fails."""
    # NaN would pass every limit, and infinity is no time to wake up at.
    retry_after = seconds_of(failure.verdict.retry_after)
    if callable(backoff.shape) and call_user_code:
        try:
            return backoff.delay(attempt, random, retry_after)
        except BaseException as exc:
            let_through(exc)
            text = f"shape failed with {shown(exc, _SHOWN)}, so the exponential one is used"
            _warn(failure, title, text, exc)
    return backoff.without_user_code().delay(attempt, random, retry_after)


def seconds_of(value: Any) -> float | None:
    """*value*, a number or a timedelta, in seconds; None when it is no delay."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        return checked_number("delay", value)
    except BaseException as exc:  # its error shows the value, whose repr is the user's code too
        let_through(exc)
        return None


def _warn(failure: Failure, title: str, text: str, exc: BaseException | None = None) -> None:
    said = ("%s: %s: %s", failure.task, title, text)
    try:
        logger.warning(*said, exc_info=exc)
    except BaseException as problem:  # it was raised while a worse one was handled
        let_through(problem)
        logger.warning(*said)
