"""How the verbs of ``dlq`` print letters, and how they name the changes they make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from celery_resilience.cli.letter_json import as_json
from celery_resilience.cli.listing import Things
from celery_resilience.cli.output import Verb, print_table
from celery_resilience.cli.render_letter import as_row, headlines
from celery_resilience.cli.session import Call, tallies_of
from celery_resilience.cli.text import many_letters
from celery_resilience.messages.redact import printable
from celery_resilience.operate.dead_letters import (
    DeadLetters,
    Dropped,
    DropResult,
    Replayed,
    ReplayResult,
)
from celery_resilience.operate.ids import length_shown

__all__ = ["DROP", "REPLAY", "things"]

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


def things(call: Call[DeadLetters]) -> Things:
    """The letters, for a verb that lists or changes them."""
    letters, redactor = call.session, call.redactor

    def print_letters(rows: Sequence[Row]) -> None:
        """A line for each letter, under its queue where there are several."""
        blank, length = "", length_shown(cells[0] for _, cells in rows)
        of_queue = sorted(rows, key=lambda row: row[0])
        for queue, those in itertools.groupby(of_queue, key=lambda row: row[0]):
            if len(letters.queues) > 1:
                call.echo(blank + call.bold(f"In {printable(queue)}:"))
                blank = "\n"
            print_table(call.ctx, [cells for _, cells in those], headlines, length)

    return Things(
        session=letters,
        count=lambda: sum(tally.number for tally in tallies_of(call.ctx)),
        many=many_letters,
        noun="dead letters",
        id_of=lambda filed: filed.name,
        as_json=lambda filed: as_json(filed, redactor),
        as_row=lambda filed: (filed.queue, as_row(filed, redactor)),
        print_rows=print_letters,
        where=printable(", ".join(letters.queues)),
    )
