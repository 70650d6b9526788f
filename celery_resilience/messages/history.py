"""The attempts that lie behind a message, and how they travel with it.

They travel as one JSON object in one header (:data:`~celery_resilience.messages.headers.HEADER`),
which every attempt reads and writes again, so it is bounded: the first two attempts and the last
eight are kept, the others only counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from celery_resilience.messages.context import levels_of
from celery_resilience.messages.headers import compact

__all__ = ["Attempt", "History", "Succeeded", "clipped", "finite"]

_FIRST, _LAST = 2, 8
_LINEAGE = 10
_TEXT = 500
#: No broker has longer names, and one that is cut names another queue.
_QUEUE = 1024


@dataclass(frozen=True)
class Attempt:
    """One failed execution of the body."""

    #: Counted from 1.
    number: int
    #: When it began, in seconds since the epoch.
    at: float
    #: How long it ran, in seconds.
    ran: float
    #: The worker's node name: ``celery@host``.
    worker: str
    #: The exception's type, ``module.Name``.
    error: str
    #: What it said, at most 500 characters.
    message: str
    #: The classifier's verdict and the rule that decided.
    kind: str
    rule: str
    #: Seconds until the retry that followed; None where none did.
    delay: float | None = None
    #: The innermost frame of the task's own code, ``module.function``.
    frame: str = ""


@dataclass(frozen=True)
class Succeeded:
    """A body that has succeeded, while what was to follow it could not be published."""

    #: What it returned, as JSON; None: too long, or nothing that JSON can say.
    result: str | None
    #: Its callbacks have been published; the rest of its chain has not.
    called: bool = False


@dataclass(frozen=True)
class History:
    """What is known about the attempts before this delivery."""

    #: When the first attempt began, in seconds since the epoch; None before it has.
    first: float | None = None
    #: How many attempts there were, those that are not kept included.
    count: int = 0
    #: The first two and the last eight.
    attempts: tuple[Attempt, ...] = ()
    #: How many of them ended with the death of the process that ran them.
    losses: int = 0
    #: How often it was redelivered since its last attempt, as after a crash of its worker.
    crash_redeliveries: int = 0
    #: When that was first, in seconds since the epoch.
    redelivered_at: float | None = None
    #: Another worker, which has lost it with its connection, ran it when it was last asked.
    elsewhere: bool = False
    #: The letters that this message has been replayed from, oldest first.
    lineage: tuple[str, ...] = ()
    #: The queue that this message was in before it was held for its next attempt.
    queue: str = ""
    #: What the attempts tell each other (`RetryContext`), and below it what their parents did.
    context: tuple[Mapping[str, Any], ...] = ()
    #: The body is not to be run again: only what follows it is to be published.
    succeeded: Succeeded | None = None

    def add(self, attempt: Attempt, *, lost: bool = False) -> History:
        """This history and one failed *attempt* more."""
        kept = (*self.attempts, attempt)
        if len(kept) > _FIRST + _LAST:
            kept = kept[:_FIRST] + kept[-_LAST:]
        return replace(
            self,
            first=attempt.at if self.first is None else self.first,
            count=self.count + 1,
            attempts=kept,
            losses=self.losses + lost,
            crash_redeliveries=0,
            redelivered_at=None,
            elsewhere=False,
        )

    def replayed(self, letter: str) -> History:
        """The history of a message that is published again from *letter*, with no attempts."""
        lineage = (*self.lineage, letter)[-_LINEAGE:]
        return History(lineage=lineage, context=self.context, succeeded=self.succeeded)

    def clipped(self, limit: int) -> History:
        """The same with at most *limit* // 10 characters, and a few more, of every text."""
        names = [f.name for f in fields(Attempt) if f.type == "str"]

        def short(attempt: Attempt) -> Attempt:
            texts: Any = {n: clipped(getattr(attempt, n), limit // 10 + 20) for n in names}
            return replace(attempt, **texts)

        return replace(self, attempts=tuple(map(short, self.attempts)))

    def to_json(self) -> dict[str, Any]:
        """A dict with short keys; :meth:`from_json` reads it back."""
        return {
            "v": 1,
            "first": self.first,
            "count": self.count,
            "attempts": [_told(attempt) for attempt in self.attempts],
            "losses": self.losses,
            "lineage": list(self.lineage),
            **({"starts": self.crash_redeliveries} if self.crash_redeliveries else {}),
            **({"suspected": self.redelivered_at} if self.redelivered_at is not None else {}),
            **({"elsewhere": True} if self.elsewhere else {}),
            **({"queue": self.queue} if self.queue else {}),
            **({"context": list(self.context)} if any(self.context) else {}),
            **({"succeeded": dict(vars(self.succeeded))} if self.succeeded else {}),
        }

    def dumps(self) -> str:
        """The header's text."""
        return compact(self.to_json())

    @classmethod
    def loads(cls, text: object) -> History:
        """The history in a header's *text*; an empty one where it can't be read.

        A header comes from the network: nothing in it may stop a worker.
        """
        if not isinstance(text, (str, bytes)):
            return cls()
        try:
            return cls.from_json(json.loads(text))
        except (ValueError, RecursionError):
            return cls()

    @classmethod
    def from_json(cls, data: object) -> History:
        """The history in *data*, as :meth:`to_json` wrote it; what can't be read is left out."""
        if not isinstance(data, Mapping):
            return cls()
        listed = data.get("attempts")
        read = [_attempt(item) for item in listed[-50:]] if isinstance(listed, list) else []
        kept = tuple(attempt for attempt in read if attempt is not None)
        lineage = data.get("lineage")
        ids = [i for i in lineage if isinstance(i, str)] if isinstance(lineage, list) else []
        return cls(
            first=finite(data.get("first")),
            count=max(_whole(data.get("count")), len(kept)),
            attempts=kept[:_FIRST] + kept[_FIRST:][-_LAST:],
            losses=_whole(data.get("losses")),
            crash_redeliveries=_whole(data.get("starts")),
            redelivered_at=finite(data.get("suspected")),
            elsewhere=data.get("elsewhere") is True,
            lineage=tuple(i[:64] for i in ids[-_LINEAGE:]),
            queue=_queue(data.get("queue")),
            context=levels_of(data.get("context")),
            succeeded=_succeeded(data.get("succeeded")),
        )


def clipped(text: str, limit: int = _TEXT) -> str:
    """At most *limit* characters of *text*, with a sign where some are missing."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _succeeded(data: object) -> Succeeded | None:
    if not isinstance(data, Mapping):
        return None
    result = data.get("result")
    return Succeeded(result if isinstance(result, str) else None, data.get("called") is True)


def _told(attempt: Attempt) -> dict[str, Any]:
    return {name: value for name, value in vars(attempt).items() if value or name != "frame"}


def _attempt(data: object) -> Attempt | None:
    if not isinstance(data, Mapping):
        return None
    at, ran, delay = (finite(data.get(name)) for name in ("at", "ran", "delay"))
    texts = {f.name: clipped(str(data.get(f.name, ""))) for f in fields(Attempt) if f.type == "str"}
    return Attempt(
        number=_whole(data.get("number")), at=at or 0.0, ran=ran or 0.0, delay=delay, **texts
    )


def finite(value: object) -> float | None:
    """*value* as a float if it is a finite number, else None: it comes from the network."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _queue(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _QUEUE else ""


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return min(max(value, 0), 2**31)
