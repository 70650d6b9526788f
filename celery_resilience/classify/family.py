"""A family: the exceptions of one library, where to look in them and what they deserve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from celery_resilience.classify.finding import Finding
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["Family", "Inner", "Look", "Reader", "each"]

DEPTH = 8  # exceptions inside exceptions, followed that far down
BREADTH = 1000  # and that many in all, however large a group is

Key = TypeVar("Key")


class Look:
    """One call of the classifier: its clock, and which exceptions it has been in already."""

    __slots__ = ("_clock", "_depth", "_examine", "_seen")

    def __init__(
        self, clock: float | None, examine: Callable[[BaseException, Look], Verdict]
    ) -> None:
        self._clock = clock
        self._examine = examine
        self._depth = 0
        self._seen: set[int] = set()

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return time.time() if self._clock is None else self._clock

    def into(self, inner: object) -> Verdict | None:
        """The verdict on an exception inside the one looked at; None if it teaches nothing.

        It teaches nothing when it is no exception, was met before, lies too deep, or is unknown.
        """
        if not issubclass(type(inner), BaseException):
            return None
        if self._depth >= DEPTH or len(self._seen) >= BREADTH or id(inner) in self._seen:
            return None
        self._depth += 1
        try:
            verdict = self._examine(inner, self)  # type: ignore[arg-type]
        finally:
            self._depth -= 1
        return None if verdict.kind is Kind.UNKNOWN else verdict

    def enter(self, exception: BaseException) -> None:
        """Remember that *exception* is being looked at, so that no cycle leads here again."""
        self._seen.add(id(exception))


Reader = Callable[[BaseException, Look], "Verdict | None"]
Inner = Callable[[BaseException], "Iterable[object]"]


@dataclass(frozen=True)
class Family:
    """The exceptions of one library, or of a few that are built alike."""

    #: Its name in the documentation.
    name: str
    #: Root modules of its classes.
    roots: frozenset[str]
    #: What is looked at, for the documentation.
    reads: str
    #: What a class deserves that its attributes say nothing about.
    classes: Mapping[str, Finding] = field(default_factory=dict)
    #: What its codes deserve, by the name that the rule gives them.
    codes: Mapping[str, Mapping[object, Finding]] = field(default_factory=dict)
    #: Reads its attributes.
    read: Reader | None = None
    #: Gives the exceptions that it wraps.
    inner: Inner | None = None
    #: False where ``status`` and the like are no HTTP statuses.
    http: bool = True
    #: The first word of its rules, where that is not the root module.
    prefix: str | None = None


def each(finding: Finding, *keys: Key) -> dict[Key, Finding]:
    """A piece of a table in which all *keys* deserve the same."""
    return dict.fromkeys(keys, finding)
