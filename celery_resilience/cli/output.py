"""What ``dlq`` and ``retries`` print: tables, JSON, and how a change goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import click

from celery_resilience.cli.text import columns, room
from celery_resilience.messages.redact import printable
from celery_resilience.operate.ids import length_shown, shortened

__all__ = [
    "Verb",
    "carry_out",
    "print_array",
    "print_blocks",
    "print_counts",
    "print_json",
    "print_table",
]

#: So many lines of a table are set at once; longer ones come in several pieces.
_PIECE = 200


@dataclass(frozen=True)
class Verb:
    """The words for a verb: before it changes anything, while it runs, and at its end."""

    #: What it does: ``replay``.
    infinitive: str
    #: What it is doing, for the progress bar.
    label: str
    #: What may become of one letter or retry; the last of these is a failure.
    results: tuple[Enum, ...]
    #: The key of the JSON array of them all.
    array: str
    #: One of them, for a program.
    as_object: Callable[[Any], dict[str, Any]]
    #: Whether it removes something for good: then a reason is asked for.
    drops: bool = False


def carry_out(
    ctx: click.Context,
    verb: Verb,
    results: Iterator[Any],
    number: int,
    as_json: bool,
    also: Mapping[str, Any] | None = None,
) -> bool:
    """Draw the progress of what *results* yields, and sum it up, with what was done *also*;
    whether nothing failed."""
    totals = dict.fromkeys(verb.results, 0)

    def counted() -> Iterator[Any]:
        watched = sys.stderr.isatty() and not ctx.obj.quiet
        with (
            click.progressbar(results, length=number, label=verb.label, file=sys.stderr)
            if watched
            else nullcontext(results)
        ) as progress:
            for one in progress:
                totals[one.result] += 1
                yield one

    #: The first of them are printed, the others are alike.
    problems: list[str] = []
    try:
        if as_json:
            click.echo(f'{{"{verb.array}":')
            print_array(map(verb.as_object, counted()))
        else:
            for one in counted():
                if one.why and len(problems) < 10:
                    problems.append(f"{verb.as_object(one)['id']} {one.result}: {one.why}")
    finally:
        for problem in problems:
            ctx.obj.error(printable(problem))
        sums = {**{str(result): n for result, n in totals.items()}, **(also or {})}
        if as_json:
            named = {name.replace(" ", "_"): n for name, n in sums.items()}
            click.echo(", " + json.dumps(named).removeprefix("{"))
        else:
            numbers = {name: n for name, n in sums.items() if isinstance(n, int)}
            ctx.obj.echo(", ".join(f"{name} {n:,}" for name, n in numbers.items()))
    return totals[verb.results[-1]] == 0


def print_table(
    ctx: click.Context,
    rows: Sequence[list[str]],
    headlines: Callable[[list[list[str]]], list[str]],
    length: int | None = None,
) -> None:
    """Print *rows* as the lines that *headlines* makes of some of them, heading first; of the id
    that each begins with *length* characters, or as many as tell them apart."""
    if length is None:
        length = length_shown(cells[0] for cells in rows)
    for at in range(0, len(rows), _PIECE):
        piece = [[shortened(name, length), *rest] for name, *rest in rows[at : at + _PIECE]]
        heading, *lines = headlines(piece)
        ctx.obj.echo(ctx.obj.style(heading, bold=True))
        for line in lines:
            ctx.obj.echo(line)


def print_counts(ctx: click.Context, rows: Sequence[tuple[str, str]]) -> None:
    """Print how many lie in each queue."""
    for line in columns(rows, room(), elastic=(0,), numbers=(1,), keep_end=(0,)):
        ctx.obj.echo(line)


def print_json(told: Any) -> None:
    """Print what was *told* to a program that asked for one answer."""
    click.echo(json.dumps(told, indent=2))


def print_array(objects: Iterable[dict[str, Any]]) -> None:
    """Print a JSON array one object at a time: there may be many."""
    separator = "["
    for one in objects:
        click.echo(separator + "\n" + json.dumps(one), nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")


def print_blocks(ctx: click.Context, blocks: Iterable[tuple[str, str]]) -> None:
    """Print blocks of text, each under its title if it has one, with a blank line before."""
    for title, text in blocks:
        ctx.obj.echo("")
        if title:
            ctx.obj.echo(ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)
