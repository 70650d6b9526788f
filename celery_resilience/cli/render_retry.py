"""Waiting retries told to a person and to a program, and what is said when they are changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
from celery.platforms import EX_FAILURE

from celery_resilience.cli import output as printing
from celery_resilience.cli import render_letter as story
from celery_resilience.cli.options import Selection, ask, ask_why, up_to
from celery_resilience.cli.output import Verb
from celery_resilience.cli.text import columns, moment, room, screen, short, span
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.retries import Retries
from celery_resilience.operate.scheduled_retry import Changed, Result, ScheduledRetry

__all__ = ["as_json", "as_row", "change", "headlines", "many", "tell", "unlisted"]

HEADINGS = ("ID", "DUE IN", "QUEUE", "TASK", "TRIES", "ERROR")


# For a program


def as_json(retry: ScheduledRetry, redactor: Redactor, *, whole: bool = False) -> dict[str, Any]:
    """What JSON output says about a waiting retry; *whole* adds what ``show`` shows."""
    letter = redactor.letter(retry.letter)
    told: dict[str, Any] = {
        "id": letter.task_id,
        "task": letter.task,
        "queue": letter.envelope.queue,
        "due": story.iso(retry.due),
        "due_in": round(retry.left, 3),
        "attempts": letter.history.count,
        "error": letter.error.error,
        "message": letter.error.message,
        "kind": letter.kind,
        "rule": letter.verdict_rule,
        "group": letter.group,
        "fingerprint": letter.fingerprint,
    }
    return {**told, **story.details(letter)} if whole else told


def _changed(changed: Changed) -> dict[str, Any]:
    return {
        "id": changed.retry.task_id,
        "task": changed.retry.task,
        "queue": changed.retry.queue,
        "to": changed.to,
        "due": None if changed.due is None else story.iso(changed.due),
        "result": changed.result.value,
        "why": changed.why,
    }


def _verb(label: str, result: Result) -> Verb:
    """What is said while retries are changed, if *result* is what they are changed to."""
    return Verb(label, (result, Result.SKIPPED, Result.FAILED), "retries", _changed)


# For a person


def many(number: int) -> str:
    """So many waiting retries."""
    return f"{number:,} waiting {'retry' if number == 1 else 'retries'}"


def as_row(retry: ScheduledRetry, redactor: Redactor) -> list[str]:
    """The cells of a waiting retry's line in ``ls``."""
    letter = redactor.letter(retry.letter)
    return [
        printable(letter.task_id) or "?",
        short(retry.left) if retry.left > 0 else f"-{short(-retry.left)}",
        printable(letter.envelope.queue),
        printable(letter.task) or "?",
        str(letter.history.count),
        printable(story.error_line(letter.error.error, letter.error.message)),
    ]


def headlines(rows: list[list[str]]) -> list[list[str]]:
    """The lines of ``ls``, with its heading, in the width of the screen."""
    return columns(
        [list(HEADINGS), *rows], room(), elastic=(5, 2, 3), numbers=(1, 4), keep_end=(3,)
    )


def tell(retry: ScheduledRetry, redactor: Redactor) -> Iterator[tuple[str, str]]:
    """All that is known about a waiting retry, as blocks of text, each under a title."""
    letter, width = redactor.letter(retry.letter), screen()
    envelope = letter.envelope
    due = moment(retry.due)
    due += f" (in {span(retry.left)})" if retry.left > 0 else f" ({span(-retry.left)} overdue)"
    facts = {
        "Task": letter.task or "?",
        "Task id": letter.task_id,
        "Queue": envelope.queue,
        "Due": due,
        "Error": ": ".join(filter(None, (letter.error.error, letter.error.message))),
        "Verdict": story.verdict(letter),
        "Attempts": story.tried(letter),
        "Priority": str(envelope.properties.get("priority") or ""),
        "Body": story.body(envelope),
        "Replayed from": ", ".join(letter.history.lineage),
    }
    yield "", story.listed(facts, width)
    yield from story.particulars(letter, redactor, width, "waits")


def _levels(found: list[tuple[float, int]]) -> Iterator[str]:
    """The lines that tell where RabbitMQ keeps what waits."""
    rows = [["HELD FOR", "MESSAGES"], *([span(held), f"{n:,}"] for held, n in found if n)]
    return ("  ".join(row) for row in columns(rows, screen(), numbers=(0, 1)))


# Together


def unlisted(ctx: click.Context, waiting: Retries, as_json: bool) -> bool:
    """Tell what there is to tell where retries can't be listed; whether that is so."""
    why = waiting.unlisted
    if why is None:
        return False
    found = waiting.levels()
    if as_json:
        told = [{"seconds": seconds, "messages": number} for seconds, number in found]
        click.echo(json.dumps({"listed": False, "why": why, "levels": told}, indent=2))
        return True
    if any(number for _, number in found):
        for line in _levels(found):
            ctx.obj.echo(line)
    ctx.obj.echo(f"{why[0].upper()}{why[1:]}.", err=True)
    return True


def change(
    ctx: click.Context,
    waiting: Retries,
    redactor: Redactor,
    selection: Selection,
    move: Callable[..., Iterator[Changed]],
    infinitive: str,
    label: str,
    result: Result,
    when: str = "",
    orphans: bool = False,
) -> None:
    """Do what a verb does to those of *selection*: by *move*, which changes each to *result*.

    With *orphans* what dead workers hold is given back as well.
    """
    chosen = waiting.find_all(selection.ids) if selection.ids else None
    number = len(chosen) if chosen is not None else _number(waiting, selection)
    lying = sum(waiting.orphans().values()) if orphans else 0
    held = f", and give back {lying:,} that dead workers hold" if lying else ""
    if selection.dry_run:
        rows = number if selection.as_json else min(number, up_to(None) or number)
        shown = waiting.list(rows, selection.filters) if chosen is None else chosen
        if selection.as_json:
            printing.print_array(as_json(retry, redactor) for retry in shown)
            return
        printing.print_table(ctx, [as_row(retry, redactor) for retry in shown], headlines)
        ctx.obj.echo(f"would {infinitive} {number:,}{when}{held}")
        return
    options: dict[str, Any] = {}
    if result is Result.DROPPED:
        waiting.close()
        options["because"] = ask_why(number, selection)
    if (number or lying) and not selection.yes:
        waiting.close()  # a broker may hang up on a connection that nobody uses
        what = many(number)
        ask(f"{what} to {infinitive}", f"{infinitive.capitalize()} {what}{when}{held}?")
    results = move(
        "all" if chosen is None else {retry.task_id: None for retry in chosen},
        filters=selection.filters,
        limit=number if chosen is None else None,
        **options,
    )
    also = {"given back": waiting.reclaim()} if lying else options
    said = _verb(label, result)
    if not printing.carry_out(ctx, said, results, number, selection.as_json, also):
        ctx.exit(EX_FAILURE)


def _number(waiting: Retries, selection: Selection) -> int:
    if selection.filters:
        return sum(1 for _ in waiting.list(selection.limit, selection.filters))
    there = sum(waiting.count().values())
    return there if selection.limit is None else min(selection.limit, there)
