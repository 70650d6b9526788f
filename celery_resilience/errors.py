"""Errors that a task raises to say what it deserves, and errors of our own.

::

    ResilienceError
    ├── TransientError        retry me
    │   ├── RateLimitedError  retry me, but later: this does not use up a retry
    │   └── UnacceptableResult  the body's result is not good enough
    ├── PermanentError        do not retry me: dead letter now
    ├── Snooze                run me again after a while: this does not use up a retry
    ├── Discard               drop me: neither a retry nor a dead letter
    ├── BodyExited            the body raised something that would have ended the process
    └── BrokerError           a broker could not do what was asked of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from difflib import get_close_matches

__all__ = [
    "BodyExited",
    "BrokerError",
    "Discard",
    "PermanentError",
    "RateLimitedError",
    "ResilienceError",
    "Snooze",
    "TransientError",
    "UnacceptableResult",
]


class ResilienceError(Exception):
    """The base of every error in this package."""


class TransientError(ResilienceError):
    """Raise it from a task whose next attempt may well succeed.

    *retry_after*, in seconds or as a timedelta, is the least time to wait before that attempt.
    """

    def __init__(self, *args: object, retry_after: float | timedelta | None = None) -> None:
        super().__init__(*args)
        self.retry_after = _seconds(retry_after, type(self).__name__, "retry_after")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), self.args, {"retry_after": self.retry_after})


class RateLimitedError(TransientError):
    """Raise it when a service asked for patience; waiting does not use up a retry."""


class UnacceptableResult(TransientError):
    """What a result that ``retry_on_result`` does not accept fails with; it tells the result."""


class PermanentError(ResilienceError):
    """Raise it when no retry can help: the message becomes a dead letter at once."""


class Snooze(ResilienceError):
    """Raise it to be run again after *delay* seconds without using up a retry."""

    def __init__(self, delay: float | timedelta, why: str = "snoozed") -> None:
        seconds = _seconds(delay, "Snooze", "delay")
        assert seconds is not None
        super().__init__(seconds, why)
        self.delay = seconds
        self.why = why

    def __str__(self) -> str:
        return f"{self.why}, again in {self.delay:g} s"


class Discard(ResilienceError):
    """Raise it when the work is no longer wanted: no retry and no dead letter."""

    def __init__(self, why: str = "discarded") -> None:
        super().__init__(why)
        self.why = why


class BodyExited(ResilienceError):
    """A body raised SystemExit, KeyboardInterrupt or the like; the worker stays up.

    The exception that the body raised is the ``__cause__``.
    """


def unreadable(exc: BaseException, problem: BaseException) -> BodyExited:
    """What stands for *exc*, of which reading it raised *problem*."""
    return BodyExited(
        f"the body raised {type(exc).__name__}, and reading it raised {type(problem).__name__}"
    )


class BrokerError(ResilienceError):
    """A broker could not be reached, or could not do what was asked of it."""


def nearest(value: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Which of the *known* words was meant by *value*, a misspelt one; None: none is near."""
    near = get_close_matches(value, list(known), 1, cutoff) if isinstance(value, str) else []
    return near[0] if near else None


def did_you_mean(value: object, known: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """A ``; did you mean 'full'?`` to end an error with, or nothing."""
    near = nearest(value, known)
    return "" if near is None else f"; did you mean {shown(near)}?"


def _seconds(value: float | timedelta | None, owner: str, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} takes seconds or a timedelta, got {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{owner}: {name} must be at least 0 and finite, got {value!r}")
    return float(value)
