"""How long to wait before a retry: a ceiling that grows with the attempts, and a random part.

The ceilings and *full* jitter are those of the AWS Architecture Blog, "Exponential Backoff And
Jitter" (2015)::

    ceiling(n) = min(backoff_max, backoff * factor ** (n - 1))        n = 1, 2, 3 ...
    delay(n)   = U(0, ceiling(n))

Jitter as a *proportion* p is Resilience4j's ``IntervalFunction.ofExponentialRandomBackoff``::

    delay(n)   = U(ceiling(n) * (1 - p), ceiling(n) * (1 + p))

The first interval is jittered like every other: ``Backoff(10, jitter=0.2)`` waits 8-12 s, then
16-24, 32-48, 64-96. Some tables of Resilience4j's print the first one as a plain 10 s. The tasks
that an outage fails all fail at once, so the first retry is where the largest crowd comes
together: it needs the jitter most.

At the cap it is the *range* that ends at ``backoff_max``, not the drawn number: with 20 % at a
cap of 600 s delays are U(480, 600). Cutting the number would send half of all tasks at 600 s
sharp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from math import inf
from random import Random
from typing import Any, Literal, TypeAlias

from celery_resilience.errors import did_you_mean

__all__ = ["DEFAULT_BACKOFF", "Backoff", "Jitter", "Shape"]

#: How the ceiling grows; a function of the failed attempt (from 1) returns it in seconds.
Shape: TypeAlias = Literal["exponential", "linear", "fixed"] | Callable[[int], float]
#: ``"full"``, a proportion of the ceiling in (0, 1], or ``"none"``; None says "none" as well.
Jitter: TypeAlias = Literal["full", "none"] | float | None

_SHAPES = ("exponential", "linear", "fixed")
_JITTERS = ("full", "none")


@dataclass(frozen=True)
class Backoff:
    """The waits before the retries of one task; nothing in it is random but what is passed in."""

    #: The first ceiling. 0 means no wait at all.
    backoff: float = 1.0
    #: What the exponential shape multiplies the ceiling by after every attempt.
    factor: float = 2.0
    #: No ceiling is above this.
    backoff_max: float = 600.0
    shape: Shape = "exponential"
    jitter: Jitter = "full"

    def __post_init__(self) -> None:
        for name, least in (("backoff", 0.0), ("factor", 1.0), ("backoff_max", 0.0)):
            object.__setattr__(self, name, checked_number(name, getattr(self, name), least))
        _check_shape(self.shape)
        object.__setattr__(self, "jitter", _checked_jitter(self.jitter))
        # A function gives every ceiling itself, so `backoff` is not in use and cannot be wrong.
        if not callable(self.shape) and self.backoff > self.backoff_max:
            raise ValueError(
                f"backoff {self.backoff:g} is more than backoff_max {self.backoff_max:g}: "
                f"raise backoff_max or lower backoff"
            )

    def ceiling(self, attempt: int) -> float:
        """The longest wait after failed *attempt*, before a proportional jitter adds to it.

        It is in [0, backoff_max] for every attempt. A shape function that returns anything but
        seconds raises TypeError or ValueError; what it raises itself is let through.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, got {attempt!r}")
        if callable(self.shape):
            seconds = checked_number("what the shape function returned", self.shape(attempt))
        elif self.backoff == 0:
            return 0.0  # before the power: 0 * 2.0 ** 1024 would end in the cap
        else:
            try:
                if self.shape == "exponential":
                    seconds = self.backoff * self.factor ** (attempt - 1)
                elif self.shape == "linear":
                    seconds = self.backoff * attempt
                else:
                    seconds = self.backoff
            except OverflowError:
                seconds = inf
        return min(seconds, self.backoff_max)

    def bounds(self, attempt: int) -> tuple[float, float]:
        """The shortest and the longest wait after failed *attempt*; all between are as likely."""
        ceiling = self.ceiling(attempt)
        if self.jitter == "full":
            return 0.0, ceiling
        if isinstance(self.jitter, float):
            return ceiling * (1 - self.jitter), min(ceiling * (1 + self.jitter), self.backoff_max)
        return ceiling, ceiling

    def delay(self, attempt: int, random: Random, retry_after: float | None = None) -> float:
        """The wait after failed *attempt*.

        *retry_after*, which the other side asked for, is a floor: the delay is it plus
        U(0, ceiling), whatever the jitter and ``backoff_max``, because everyone who was turned
        away was told the same number. A backoff whose own wait is longer still keeps it.
        """
        shortest, longest = self.bounds(attempt)
        # uniform() may round past either end.
        own = min(max(random.uniform(shortest, longest), shortest), longest)
        if retry_after is None:
            return own
        if self.jitter == "full":
            return retry_after + own
        return max(own, retry_after + random.uniform(0.0, self.ceiling(attempt)))

    def without_user_code(self) -> Backoff:
        """The same numbers in the exponential shape, where the shape is a function."""
        if not callable(self.shape):
            return self
        return replace(self, shape="exponential", backoff=min(self.backoff, self.backoff_max))


def checked_number(name: str, value: object, least: float = 0.0) -> float:
    """*value* as a float, refused unless it is a finite number of at least *least*."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value < inf:
        raise ValueError(f"{name} must be finite and at least {least:g}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large a number to be seconds") from None


_RETRIES = "max_retries takes a whole number of at least 0, or None for no limit"


def checked_retries(value: Any, wanted: str = _RETRIES) -> int | None:
    """*value* as a limit on retries, None for no limit; *wanted* is what an error says."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{wanted}, got {value!r}")
    if value < 0:
        raise ValueError(f"{wanted}, got {value!r}")
    return value


def checked_delay(value: Any) -> float | Callable[[Any], Any] | None:
    """*value* as a rule's own delay in seconds, or the user's function for it."""
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"delay takes seconds, a timedelta or a function of the exception, got {value!r}"
        )
    return checked_number("delay", value)


def _check_shape(shape: Any) -> None:
    if callable(shape):
        return
    wanted = "shape takes 'exponential', 'linear', 'fixed' or a function of the attempt"
    if not isinstance(shape, str):
        raise TypeError(f"{wanted}, got {shape!r}")
    if shape not in _SHAPES:
        raise ValueError(f"{wanted}, got {shape!r}{did_you_mean(shape, _SHAPES)}")


def _checked_jitter(jitter: Any) -> Jitter:
    if jitter is None:
        return "none"
    wanted = "jitter takes 'full', 'none' or a proportion above 0 and up to 1 (0.2 is ±20 %)"
    if isinstance(jitter, bool) or not isinstance(jitter, (str, int, float)):
        raise TypeError(f"{wanted}, got {jitter!r}")
    if isinstance(jitter, str):
        if jitter not in _JITTERS:
            raise ValueError(f"{wanted}, got {jitter!r}{did_you_mean(jitter, _JITTERS)}")
        return jitter  # type: ignore[return-value]  # one of _JITTERS
    if jitter == 0:
        raise ValueError(f"{wanted}, got {jitter!r}: write 'none'")
    if not 0 < jitter <= 1:
        raise ValueError(f"{wanted}, got {jitter!r}")
    return float(jitter)


#: The one place for the default numbers.
DEFAULT_BACKOFF = Backoff()
