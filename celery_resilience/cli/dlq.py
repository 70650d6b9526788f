"""``celery -A app dlq``: look at dead letters, and replay them."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.platforms import EX_FAILURE

from celery_resilience.cli.verbs import (
    EXIT_CODES,
    Selection,
    app_of,
    ask,
    changing,
    ending,
    filtering,
    json_option,
    limit_option,
    option,
    timeout_option,
)

if TYPE_CHECKING:
    from celery_resilience.deadletters import DeadLetters, Filed
    from celery_resilience.filters import Filters
    from celery_resilience.redact import Redactor

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["dlq"]

_DRY_RUN_ROWS = 20

queue_option = option(
    "--dead-letter-queue",
    metavar="QUEUE",
    help="Look into QUEUE and no other; {queue} stands for every queue of the app. Without it: "
    "all that settings, tasks and rules name.",
)


def _verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's letters, and end it with the exit code of whatever goes wrong."""

    @functools.wraps(command)
    def run(
        ctx: click.Context, /, dead_letter_queue: str | None, timeout: float, **options: Any
    ) -> None:
        from celery_resilience.deadletters import DeadLetters
        from celery_resilience.redact import Redactor

        if dead_letter_queue is None and ctx.parent is not None:
            dead_letter_queue = ctx.parent.params.get("dead_letter_queue")
        with (
            ending(),
            DeadLetters(
                ctx.obj.app, dead_letter_queue=dead_letter_queue, timeout=timeout
            ) as letters,
        ):
            command(ctx, letters, Redactor.of(letters.settings), **options)

    return queue_option(timeout_option(click.pass_context(run)))


@click.group(cls=DYMGroup, epilog=EXIT_CODES)
@click.option(
    "--dead-letter-queue", metavar="QUEUE", help="Look into QUEUE and no other, whatever the verb."
)
@click.pass_context
@handle_preload_options
def dlq(ctx: click.Context, **kwargs: Any) -> None:
    """Look at dead letters and replay them.

    Looking takes nothing out: no letter is removed, reordered or delayed.
    """


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@filtering("letters")
@json_option
@_verb
def ls(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    limit: int,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """List dead letters, the oldest of each queue first."""
    from celery_resilience.cli import printing, story

    listed = printing.Upto(letters.list(limit + 1, filters), limit)
    if as_json:
        printing.print_array(story.as_json(filed, redactor) for filed in listed)
        return
    printing.print_letters(ctx, letters, redactor, listed)
    if listed.shown == 0 and not listed.more:
        such = "such " if filters else ""
        ctx.obj.echo(f"No {such}dead letters in {printing.names(letters)}.")
    elif listed.more:
        of = "" if filters else f" of {printing.many(sum(letters.count().values()))}"
        ctx.obj.echo(f"{listed.shown:,}{of}: --limit N shows more.", err=True)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@click.argument("letter_id", metavar="ID")
@json_option
@_verb
def show(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    letter_id: str,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Tell the story of one dead letter.

    What died, why, when and where, every attempt, and what came with it. ID may be the beginning
    of an id, 4 characters at least.
    """
    from celery_resilience.cli import story
    from celery_resilience.redact import printable

    filed = letters.find(letter_id)
    if as_json:
        click.echo(json.dumps(story.as_json(filed, redactor, whole=True), indent=2))
        return
    name = printable(filed.letter.id)
    ctx.obj.echo(f"Dead letter {ctx.obj.style(name, bold=True)} in {printable(filed.queue)}")
    for title, text in story.story(filed, redactor):
        ctx.obj.echo("")
        if title:
            ctx.obj.echo(ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)
    ctx.obj.echo(f"\nTo replay it: {app_of(ctx)} dlq replay {name}")


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--fail-if-any", is_flag=True, help="Exit with 1 if there are dead letters.")
@json_option
@_verb
def count(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    fail_if_any: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Count the dead letters of each queue."""
    from celery_resilience.cli.table import columns, screen

    counts = letters.count()
    if as_json:
        click.echo(json.dumps(counts, indent=2))
    else:
        rows = [[queue, f"{number:,}"] for queue, number in counts.items()]
        for row in columns(rows, screen(), elastic=(0,), numbers=(1,), keep_end=(0,)):
            ctx.obj.echo("  ".join(row))
    if fail_if_any and any(counts.values()):
        ctx.exit(EX_FAILURE)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--to-queue", metavar="QUEUE", help="Publish to QUEUE, not to where each came from.")
@changing("letters")
@_verb
def replay(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    selection: Selection,
    to_queue: str | None,
    **kwargs: Any,
) -> None:
    """Publish the messages of dead letters again.

    They have all their retries before them, and go to the queues that they came from. A letter
    is removed when the broker has confirmed its message: a crash in between leaves both, never
    neither.
    """
    from celery_resilience.cli import printing

    if to_queue is not None and to_queue in letters.queues:
        raise click.UsageError(f"{to_queue} is a dead-letter queue: nothing would run there.")
    chosen = letters.find_all(selection.ids) if selection.ids else None
    number = _number(letters, selection) if chosen is None else len(chosen)
    if selection.dry_run:
        _would_replay(ctx, letters, redactor, selection, chosen, number)
        return
    if number and not selection.yes:
        _ask(ctx, letters, number, to_queue)
    results = letters.replay(
        "all" if chosen is None else [filed.letter.id for filed in chosen],
        filters=selection.filters,
        limit=number if chosen is None else None,
        to_queue=to_queue,
    )
    if not printing.carry_out(ctx, printing.REPLAY, results, number, selection.as_json):
        ctx.exit(EX_FAILURE)


def _number(letters: DeadLetters, selection: Selection) -> int:
    if selection.filters:
        return sum(1 for _ in letters.list(selection.limit, selection.filters))
    there = sum(letters.count().values())
    return there if selection.limit is None else min(selection.limit, there)


def _would_replay(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    selection: Selection,
    chosen: Sequence[Filed] | None,
    number: int,
) -> None:
    from celery_resilience.cli import printing, story

    rows = number if selection.as_json else min(number, _DRY_RUN_ROWS)
    filed = letters.list(rows, selection.filters) if chosen is None else chosen
    if selection.as_json:
        printing.print_array(story.as_json(one, redactor) for one in filed)
        return
    printing.print_letters(ctx, letters, redactor, filed)
    ctx.obj.echo(f"would replay {number:,}")


def _ask(ctx: click.Context, letters: DeadLetters, number: int, to_queue: str | None) -> None:
    from celery_resilience.cli import printing
    from celery_resilience.deadletters import known_queues

    letters.close()  # a broker may hang up on a connection that nobody uses
    where = "each to the queue that it came from"
    if to_queue is not None:
        where = f"to {to_queue}"
        if to_queue not in known_queues(ctx.obj.app):
            where += " (which this app does not know)"
    what = f"{printing.many(number)} of {printing.names(letters)}"
    ask(f"{printing.many(number)} to replay", f"Replay {what}, {where}?")
