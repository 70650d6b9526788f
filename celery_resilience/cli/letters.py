"""How the verbs of ``dlq`` print letters, and how they name the changes they make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import click

from celery_resilience.cli.change import Things
from celery_resilience.cli.letter_json import as_json
from celery_resilience.cli.output import Verb, print_table
from celery_resilience.cli.render_letter import as_row, headlines
from celery_resilience.cli.session import count_of
from celery_resilience.cli.text import many_letters
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.dead_letters import (
    DeadLetters,
    Dropped,
    DropResult,
    Filed,
    Replayed,
    ReplayResult,
)
from celery_resilience.operate.ids import length_shown

__all__ = ["DROP", "REPLAY", "names", "print_letters", "row_of", "things"]

#: A row of a table, whose first cell is an id, and the queue that it stands under.
Row = tuple[str, list[str]]


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


REPLAY = Verb("replay", "Replaying", tuple(ReplayResult), "letters", _replayed)
DROP = Verb("drop", "Dropping", tuple(DropResult), "letters", _dropped, drops=True)


def things(ctx: click.Context, letters: DeadLetters, redactor: Redactor) -> Things:
    """The letters, for a verb that changes them."""

    def print_rows(filed: Sequence[Filed]) -> None:
        print_letters(ctx, letters, [row_of(one, redactor) for one in filed])

    return Things(
        session=letters,
        count=lambda: count_of(ctx),
        many=many_letters,
        id_of=lambda filed: filed.name,
        as_json=lambda filed: as_json(filed, redactor),
        print_rows=print_rows,
        where=f" of {names(letters)}",
    )


def row_of(filed: Filed, redactor: Redactor) -> Row:
    """The row of a letter."""
    return filed.queue, as_row(filed, redactor)


def print_letters(ctx: click.Context, letters: DeadLetters, rows: Sequence[Row]) -> None:
    """Print a line for each letter, under its queue where there are several."""
    blank, length = "", length_shown(cells[0] for _, cells in rows)
    of_queue = sorted(rows, key=lambda row: row[0])
    for queue, those in itertools.groupby(of_queue, key=lambda row: row[0]):
        if len(letters.queues) > 1:
            ctx.obj.echo(blank + ctx.obj.style(f"In {printable(queue)}:", bold=True))
            blank = "\n"
        print_table(ctx, [cells for _, cells in those], headlines, length)


def names(letters: DeadLetters) -> str:
    """The dead-letter queues, for a sentence."""
    return printable(", ".join(letters.queues))
