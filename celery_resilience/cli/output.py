"""What ``dlq`` and ``retries`` print: tables, JSON, and how a change goes on."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import click

from celery_resilience.cli import render_letter as story
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.dead_letters import (
    DeadLetters,
    Dropped,
    DropResult,
    Filed,
    Replayed,
    ReplayResult,
)
from celery_resilience.operate.ids import length_shown, shortened

__all__ = [
    "DROP",
    "REPLAY",
    "Verb",
    "carry_out",
    "many",
    "names",
    "print_array",
    "print_letters",
    "print_table",
    "row_of",
]

#: So many lines of a table are set at once; longer ones come in several pieces.
_PIECE = 200


@dataclass(frozen=True)
class Verb:
    """What is said while a verb goes on, and when it is over."""

    #: What it is doing, for the progress bar.
    label: str
    #: What may become of one letter or retry; the last of these is a failure.
    results: tuple[Enum, ...]
    #: The key of the JSON array of them all.
    array: str
    #: One of them, for a program.
    as_object: Callable[[Any], dict[str, Any]]


def _replayed(replayed: Replayed) -> dict[str, Any]:
    return {**_dropped(replayed), "to": replayed.to}


def _dropped(changed: Replayed | Dropped) -> dict[str, Any]:
    return {
        "id": changed.letter.id,
        "task": changed.letter.task,
        "task_id": changed.letter.task_id,
        "dead_letter_queue": changed.queue,
        "result": changed.result.value,
        "why": changed.why,
    }


REPLAY = Verb("Replaying", tuple(ReplayResult), "letters", _replayed)
DROP = Verb("Dropping", tuple(DropResult), "letters", _dropped)


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

    #: The first of them are told, the others are alike.
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


#: A row of a table, whose first cell is an id, and the queue that it stands under.
Row = tuple[str, list[str]]


def row_of(filed: Filed, redactor: Redactor) -> Row:
    """The row of a letter."""
    return filed.queue, story.as_row(filed, redactor)


def print_letters(ctx: click.Context, letters: DeadLetters, rows: Sequence[Row]) -> None:
    """Print a line for each letter, and the queue where there are several."""
    blank, length = "", length_shown(cells[0] for _, cells in rows)
    for queue, of_queue in itertools.groupby(rows, key=lambda row: row[0]):
        if len(letters.queues) > 1:
            ctx.obj.echo(blank + ctx.obj.style(f"In {printable(queue)}:", bold=True))
            blank = "\n"
        print_table(ctx, [cells for _, cells in of_queue], story.headlines, length)


def print_table(
    ctx: click.Context,
    rows: Sequence[list[str]],
    headlines: Callable[[list[list[str]]], list[list[str]]],
    length: int | None = None,
) -> None:
    """Print *rows* in the columns that *headlines* makes of some of them, heading first; of the
    id that each begins with *length* characters, or as many as tell them apart."""
    if length is None:
        length = length_shown(cells[0] for cells in rows)
    for at in range(0, len(rows), _PIECE):
        piece = [[shortened(name, length), *rest] for name, *rest in rows[at : at + _PIECE]]
        heading, *lines = headlines(piece)
        ctx.obj.echo(ctx.obj.style("  ".join(heading).rstrip(), bold=True))
        for line in lines:
            ctx.obj.echo("  ".join(line).rstrip())


def print_array(objects: Iterable[dict[str, Any]]) -> None:
    """Print a JSON array one object at a time: there may be many."""
    separator = "["
    for one in objects:
        click.echo(separator + "\n" + json.dumps(one), nl=False)
        separator = ","
    click.echo("[]" if separator == "[" else "\n]")


def many(number: int) -> str:
    """So many dead letters."""
    return f"{number:,} dead letter{'' if number == 1 else 's'}"


def names(letters: DeadLetters) -> str:
    """The dead-letter queues, for a sentence."""
    return printable(", ".join(letters.queues))
