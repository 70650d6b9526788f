"""What ``dlq`` prints: tables, JSON, and how a replay goes on."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click

from celery_resilience.cli import story
from celery_resilience.deadletters import DeadLetters, Filed, Replayed, ReplayResult
from celery_resilience.redact import Redactor, printable

__all__ = ["carry_out", "many", "names", "print_array", "print_table"]

#: So many lines of a table are set at once; longer ones come in several pieces.
_PIECE = 200


def carry_out(ctx: click.Context, results: Iterator[Replayed], number: int, as_json: bool) -> bool:
    """Draw the progress of a replay, and sum it up; whether nothing failed."""
    totals = dict.fromkeys(ReplayResult, 0)

    def counted() -> Iterator[Replayed]:
        watched = sys.stderr.isatty() and not ctx.obj.quiet
        with (
            click.progressbar(results, length=number, label="Replaying", file=sys.stderr)
            if watched
            else nullcontext(results)
        ) as progress:
            for replayed in progress:
                totals[replayed.result] += 1
                yield replayed

    def as_object(replayed: Replayed) -> dict[str, Any]:
        return {
            "id": replayed.letter.id,
            "task": replayed.letter.task,
            "dead_letter_queue": replayed.queue,
            "to": replayed.to,
            "result": replayed.result.value,
            "why": replayed.why,
        }

    #: The first of them are told, the others are alike.
    problems: list[str] = []
    try:
        if as_json:
            click.echo('{"letters":')
            print_array(as_object(replayed) for replayed in counted())
        else:
            for replayed in counted():
                if replayed.why and len(problems) < 10:
                    problems.append(f"{replayed.letter.id} {replayed.result}: {replayed.why}")
    finally:
        for problem in problems:
            ctx.obj.error(printable(problem))
        if as_json:
            click.echo(", " + json.dumps({str(k): n for k, n in totals.items()}).removeprefix("{"))
        else:
            ctx.obj.echo(", ".join(f"{result} {n:,}" for result, n in totals.items()))
    return totals[ReplayResult.FAILED] == 0


def print_table(
    ctx: click.Context, letters: DeadLetters, redactor: Redactor, filed: Iterable[Filed]
) -> int:
    """Print a line for each letter, and the queue where there are several; how many there were."""
    shown = 0
    with _closing(filed):
        for queue, of_queue in itertools.groupby(filed, key=lambda one: one.queue):
            if len(letters.queues) > 1:
                blank = "\n" if shown else ""
                ctx.obj.echo(blank + ctx.obj.style(f"In {printable(queue)}:", bold=True))
            while piece := list(itertools.islice(of_queue, _PIECE)):
                shown += len(piece)
                heading, *lines = story.headlines([story.as_row(one, redactor) for one in piece])
                ctx.obj.echo(ctx.obj.style("  ".join(heading).rstrip(), bold=True))
                for line in lines:
                    ctx.obj.echo("  ".join(line).rstrip())
    return shown


@contextmanager
def _closing(iterable: Iterable[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()


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
