"""How the verbs of ``retries`` print, and how they name the changes they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celery_resilience.cli.change import change
from celery_resilience.cli.letter_json import iso
from celery_resilience.cli.listing import Things
from celery_resilience.cli.options import Selection
from celery_resilience.cli.output import Verb, print_json, print_table
from celery_resilience.cli.render_retry import as_json, as_row, headlines
from celery_resilience.cli.session import Call
from celery_resilience.cli.text import columns, screen, span
from celery_resilience.operate.retries import Retries
from celery_resilience.operate.scheduled_retry import Changed, Result

__all__ = [
    "BURY",
    "DROP",
    "RELEASE",
    "RESCHEDULE",
    "RUN",
    "change_retries",
    "things",
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


def things(call: Call[Retries]) -> Things:
    """The scheduled retries, for a verb that lists or changes them."""
    scheduled, redactor = call.session, call.redactor
    return Things(
        session=scheduled,
        count=lambda: sum(scheduled.count().values()),
        many=lambda number: f"{number:,} scheduled {'retry' if number == 1 else 'retries'}",
        noun="scheduled retries",
        id_of=lambda retry: retry.task_id,
        as_json=lambda retry: as_json(retry, redactor),
        as_row=lambda retry: as_row(retry, redactor),
        print_rows=lambda rows: print_table(call.ctx, rows, headlines),
    )


def change_retries(
    call: Call[Retries],
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
    reclaim = (lambda: {"given back": call.session.reclaim()}) if orphans else None
    change(call.ctx, things(call), selection, verb, move, how=when, preview=when, first=reclaim)


def unlisted(call: Call[Retries], as_json: bool) -> bool:
    """Print what is known where retries cannot be listed: how long RabbitMQ's levels hold
    messages, and how many they hold. Whether that is so."""
    why = call.session.unlisted
    if why is None:
        return False
    found = call.session.levels()
    if as_json:
        told = [{"seconds": seconds, "messages": number} for seconds, number in found]
        print_json({"listed": False, "why": why, "levels": told})
        return True
    rows = [[span(held), f"{number:,}"] for held, number in found if number]
    if rows:
        for line in columns([["HELD FOR", "MESSAGES"], *rows], screen(), numbers=(0, 1)):
            call.echo(line)
    call.ctx.obj.echo(f"{why[0].upper()}{why[1:]}.", err=True)
    return True
