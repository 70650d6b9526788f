"""Lists are read first, all of them, then released, and only then printed: on RabbitMQ a letter is
invisible to others while it is being read."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

__all__ = ["Listing", "first", "listed", "newest", "tell_more", "watched"]

T = TypeVar("T")

#: Reading so many shows how far it is.
_LONG = 1000


@dataclass(frozen=True)
class Listing:
    """What was read, and how much of it is printed."""

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


def listed(
    ctx: click.Context,
    session: Any,
    filters: Any,
    make: Callable[[Any], Any],
    limit: int | None,
    number: int,
    at: Callable[[Any], float] | None = None,
) -> Listing:
    """What *make* makes of those in an operator's *session* that *filters* accept, the first
    *limit* or, by *at*, the newest; there are about *number* in all."""
    if at is None and not filters and limit is not None:
        return first(session.list(limit), make, limit, number)
    browsed = watched(ctx, session.list(filters=filters), number, "Reading")
    return first(browsed, make, limit) if at is None else newest(browsed, make, limit, at)


def tell_more(ctx: click.Context, listing: Listing, many: Callable[[int], str]) -> None:
    """Say on stderr how many are not shown."""
    if len(listing.shown) < listing.total:
        of = f"{len(listing.shown):,} of {many(listing.total)}"
        ctx.obj.echo(f"{of}: --limit N or --limit all shows more.", err=True)


def watched(ctx: click.Context, things: Iterator[T], number: int, label: str) -> Iterator[T]:
    """*things*, of which there are about *number*; on a terminal one sees them being read."""
    if number < _LONG or ctx.obj.quiet or not sys.stderr.isatty():
        yield from things
        return
    with click.progressbar(things, length=number, label=label, file=sys.stderr) as progress:
        yield from progress
