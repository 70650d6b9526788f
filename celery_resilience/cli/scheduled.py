"""How the verbs of ``retries`` print, and how they name the changes they make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click

from celery_resilience.cli.change import Things, change
from celery_resilience.cli.letter_json import iso
from celery_resilience.cli.options import Selection
from celery_resilience.cli.output import Verb, print_table
from celery_resilience.cli.render_retry import as_json, as_row, headlines
from celery_resilience.cli.text import columns, screen, span
from celery_resilience.messages.redact import Redactor
from celery_resilience.operate.retries import Retries
from celery_resilience.operate.scheduled_retry import Changed, Result

__all__ = [
    "BURY",
    "DROP",
    "RELEASE",
    "RESCHEDULE",
    "RUN",
    "change_retries",
    "many",
    "unlisted",
]


def _changed(changed: Changed) -> dict[str, Any]:
    return {
        "id": changed.retry.task_id,
        "task": changed.retry.task,
        "queue": changed.retry.queue,
        "to": changed.to,
        "due": None if changed.due is None else iso(changed.due),
        "result": changed.result.value,
        "why": changed.why,
    }


def _verb(infinitive: str, label: str, result: Result) -> Verb:
    """The words for a change of retries that ends in *result*."""
    results = (result, Result.SKIPPED, Result.FAILED)
    drops = result is Result.DROPPED
    return Verb(infinitive, label, results, "retries", _changed, drops=drops)


RUN = _verb("run", "Running", Result.RUN)
BURY = _verb("bury", "Burying", Result.BURIED)
DROP = _verb("drop", "Dropping", Result.DROPPED)
RESCHEDULE = _verb("reschedule", "Rescheduling", Result.RESCHEDULED)
RELEASE = _verb("release", "Releasing", Result.RELEASED)


def change_retries(
    ctx: click.Context,
    scheduled: Retries,
    redactor: Redactor,
    selection: Selection,
    verb: Verb,
    move: Callable[..., Iterator[Changed]],
    when: str = "",
    orphans: int = 0,
) -> None:
    """Do what *verb* does to those of *selection*, by *move*; first requeue the *orphans*, so many
    messages that dead workers hold."""
    if orphans:
        when += f", and requeue {orphans:,} held by dead workers"
    things = Things(
        session=scheduled,
        count=lambda: sum(scheduled.count().values()),
        many=many,
        id_of=lambda retry: retry.task_id,
        as_json=lambda retry: as_json(retry, redactor),
        print_rows=lambda retries: print_table(
            ctx, [as_row(retry, redactor) for retry in retries], headlines
        ),
    )
    first = (lambda: {"given back": scheduled.reclaim()}) if orphans else None
    change(ctx, things, selection, verb, move, how=when, preview=when, first=first)


def many(number: int) -> str:
    """So many scheduled retries."""
    return f"{number:,} scheduled {'retry' if number == 1 else 'retries'}"


def _levels(found: list[tuple[float, int]]) -> Iterator[str]:
    """The lines of a table: how long RabbitMQ's levels hold messages, and how many they hold."""
    rows = [["HELD FOR", "MESSAGES"], *([span(held), f"{n:,}"] for held, n in found if n)]
    return ("  ".join(row) for row in columns(rows, screen(), numbers=(0, 1)))


def unlisted(ctx: click.Context, scheduled: Retries, as_json: bool) -> bool:
    """Print what is known where retries cannot be listed; whether that is so."""
    why = scheduled.unlisted
    if why is None:
        return False
    found = scheduled.levels()
    if as_json:
        told = [{"seconds": seconds, "messages": number} for seconds, number in found]
        click.echo(json.dumps({"listed": False, "why": why, "levels": told}, indent=2))
        return True
    if any(number for _, number in found):
        for line in _levels(found):
            ctx.obj.echo(line)
    ctx.obj.echo(f"{why[0].upper()}{why[1:]}.", err=True)
    return True
