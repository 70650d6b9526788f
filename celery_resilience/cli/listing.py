"""Lists are read first, all of them, then released, and only then printed: on RabbitMQ a letter is
invisible to others while it is being read."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from celery_resilience.cli.options import up_to
from celery_resilience.cli.output import print_array
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.retries import Retries

__all__ = ["Things", "print_list", "print_none", "watched"]

T = TypeVar("T")

#: Reading so many shows how far it is.
_LONG = 1000


@dataclass(frozen=True)
class Things:
    """The letters or the scheduled retries that a verb lists or changes, and how they are shown."""

    session: DeadLetters | Retries
    #: How many there are, by the broker's own figures.
    count: Callable[[], int]
    #: So many of them, in words.
    many: Callable[[int], str]
    #: What they are called, in a sentence that says that there are none.
    noun: str
    #: The id of one.
    id_of: Callable[[Any], str]
    #: One of them, for a program; and its row in a table.
    as_json: Callable[[Any], dict[str, Any]]
    as_row: Callable[[Any], Any]
    #: Prints a table of some rows.
    print_rows: Callable[[list[Any]], None]
    #: Where they lie, for a sentence.
    where: str = ""


@dataclass(frozen=True)
class _Listing:
    """What was read, and how much of it is printed."""

    #: What was made of each, in the order in which they are printed.
    shown: list[Any]
    #: How many there are, those included that are not shown.
    total: int


def print_list(
    ctx: click.Context, things: Things, filters: Any, limit: int | None, as_json: bool,
    at: Callable[[Any], float] | None = None,
) -> None:  # fmt: skip
    """Print those of *things* that *filters* accept: the first *limit* of them or, by *at*, the
    newest."""
    make, most = things.as_json if as_json else things.as_row, up_to(limit, as_json)
    session, number = things.session, things.count()
    if at is None and not filters and most is not None:
        listing = _first(session.list(most), make, most, number)
    else:
        browsed = watched(ctx, session.list(filters=filters), number, "Reading")
        listing = _first(browsed, make, most) if at is None else _newest(browsed, make, most, at)
    if as_json:
        print_array(listing.shown)
    elif listing.shown:
        things.print_rows(listing.shown)
    elif not listing.total:
        print_none(ctx, things, filters)
    if len(listing.shown) < listing.total:
        of = f"{len(listing.shown):,} of {things.many(listing.total)}"
        ctx.obj.echo(f"{of}: --limit N or --limit all shows more.", err=True)


def print_none(ctx: click.Context, things: Things, filters: Any) -> None:
    """Say that there are no *things* that *filters* accept."""
    such, where = "such " if filters else "", things.where and f" in {things.where}"
    ctx.obj.echo(f"No {such}{things.noun}{where}.")


def _first(
    things: Iterable[T], make: Callable[[T], Any], limit: int | None, total: int = 0
) -> _Listing:
    """What *make* makes of the first *limit* of *things*; the others are read to be counted.
    *total* is how many there are, where *things* are not all of them."""
    shown, seen = [], 0
    for seen, thing in enumerate(things, 1):
        if limit is None or seen <= limit:
            shown.append(make(thing))
    return _Listing(shown, max(seen, total))


def _newest(
    things: Iterable[T], make: Callable[[T], Any], limit: int | None, at: Callable[[T], float]
) -> _Listing:
    """What *make* makes of the newest *limit* of *things*, by *at*, and of equals the last."""
    kept: list[tuple[float, int, Any]] = []
    seen = 0
    for seen, thing in enumerate(things, 1):
        key = (at(thing), seen)
        if limit is None or len(kept) < limit:
            heapq.heappush(kept, (*key, make(thing)))
        elif limit and key > kept[0][:2]:
            heapq.heapreplace(kept, (*key, make(thing)))
    return _Listing([made for *_, made in sorted(kept, key=lambda k: k[:2], reverse=True)], seen)


def watched(ctx: click.Context, things: Iterator[T], number: int, label: str) -> Iterator[T]:
    """*things*, of which there are about *number*; on a terminal one sees them being read."""
    if number < _LONG or ctx.obj.quiet or not sys.stderr.isatty():
        yield from things
        return
    with click.progressbar(things, length=number, label=label, file=sys.stderr) as progress:
        yield from progress
