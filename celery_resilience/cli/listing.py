"""What is listed is read first, all of it, then let go, and only then printed: on RabbitMQ nobody
else sees a letter while it is being looked at."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

__all__ = ["Listing", "first", "newest", "watched"]

T = TypeVar("T")

#: Reading so many shows how far it is.
_LONG = 1000


@dataclass(frozen=True)
class Listing:
    """What of a look is to be printed."""

    #: What was made of each, in the order in which they are printed.
    shown: list[Any]
    #: How many there are, those included that are not shown.
    total: int


def first(
    things: Iterable[T], make: Callable[[T], Any], limit: int | None, total: int = 0
) -> Listing:
    """What *make* makes of the first *limit* of *things*; the others are read to be counted.
    *total* is how many there are, where *things* are not all of them."""
    shown, seen = [], 0
    for seen, thing in enumerate(things, 1):
        if limit is None or seen <= limit:
            shown.append(make(thing))
    return Listing(shown, max(seen, total))


def newest(
    things: Iterable[T], make: Callable[[T], Any], limit: int | None, at: Callable[[T], float]
) -> Listing:
    """What *make* makes of the newest *limit* of *things*, by *at*, and of equals the last."""
    kept: list[tuple[float, int, Any]] = []
    seen = 0
    for seen, thing in enumerate(things, 1):
        key = (at(thing), seen)
        if limit is None or len(kept) < limit:
            heapq.heappush(kept, (*key, make(thing)))
        elif limit and key > kept[0][:2]:
            heapq.heapreplace(kept, (*key, make(thing)))
    return Listing([made for *_, made in sorted(kept, key=lambda k: k[:2], reverse=True)], seen)


def watched(ctx: click.Context, things: Iterator[T], number: int, label: str) -> Iterator[T]:
    """*things*, of which there are about *number*; on a terminal one sees them being read."""
    if number < _LONG or ctx.obj.quiet or not sys.stderr.isatty():
        yield from things
        return
    with click.progressbar(things, length=number, label=label, file=sys.stderr) as progress:
        yield from progress
