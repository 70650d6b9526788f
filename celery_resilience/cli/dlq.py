"""``celery -A app dlq``: inspect dead letters, replay them, or drop them."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.platforms import EX_FAILURE

from celery_resilience.cli.exits import EXIT_CODES, app_of
from celery_resilience.cli.options import (
    Selection,
    because,
    changing,
    filtering,
    json_option,
    limit_option,
    option,
    up_to,
)
from celery_resilience.cli.session import count_of, letters_verb, tallies_of, tell_elsewhere

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.messages.redact import Redactor
    from celery_resilience.operate.dead_letters import DeadLetters, Filed

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["dlq"]


@click.group(cls=DYMGroup, epilog=EXIT_CODES)
@click.option("--dead-letter-queue", metavar="QUEUE", help="Read QUEUE only, whatever the verb.")
@click.pass_context
@handle_preload_options
def dlq(ctx: click.Context, **kwargs: Any) -> None:
    """Inspect dead letters, replay them, or drop them.

    Inspecting takes nothing out: no letter is removed, reordered or delayed.
    """


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@option("--newest", "newest_first", is_flag=True, help="List the newest first.")
@filtering("letters")
@json_option
@letters_verb
def ls(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    limit: int | None,
    newest_first: bool,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """List dead letters, the oldest of each queue first."""
    from celery_resilience.cli.letter_json import as_json as json_of
    from celery_resilience.cli.letters import names, print_letters, row_of
    from celery_resilience.cli.listing import listed, tell_more
    from celery_resilience.cli.output import print_array
    from celery_resilience.cli.text import many_letters

    def made(filed: Filed) -> Any:
        return json_of(filed, redactor) if as_json else row_of(filed, redactor)

    def at(filed: Filed) -> float:
        return filed.letter.at

    listing = listed(
        ctx, letters, filters, made, up_to(limit, as_json), count_of(ctx),
        at if newest_first else None,
    )  # fmt: skip
    if as_json:
        print_array(listing.shown)
    elif listing.shown:
        print_letters(ctx, letters, listing.shown)
    elif not listing.total:
        such = "such " if filters else ""
        ctx.obj.echo(f"No {such}dead letters in {names(letters)}.")
    tell_more(ctx, listing, many_letters)
    tell_elsewhere(ctx, letters)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@filtering("letters")
@json_option
@letters_verb
def groups(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    limit: int | None,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Group dead letters by cause, the largest group first.

    A group is a type of error in one place of your code, with a line for each task that it has
    hit. Every verb takes its name with --group.
    """
    from celery_resilience.cli.letters import names
    from celery_resilience.cli.listing import watched
    from celery_resilience.cli.output import print_array
    from celery_resilience.cli.render_groups import as_json as json_of
    from celery_resilience.cli.render_groups import lines
    from celery_resilience.operate.groups import grouped

    browsed = watched(ctx, letters.list(filters=filters), count_of(ctx), "Reading")
    found = grouped(filed.letter for filed in browsed)
    shown = found[: up_to(limit, as_json)]
    if as_json:
        print_array(json_of(group, redactor) for group in shown)
    elif shown:
        heading, *rows = lines(shown, redactor)
        ctx.obj.echo(ctx.obj.style(heading, bold=True))
        for row in rows:
            ctx.obj.echo(row)
    else:
        such = "such " if filters else ""
        ctx.obj.echo(f"No {such}dead letters in {names(letters)}.")
    if len(shown) < len(found):
        ctx.obj.echo(f"{len(shown):,} of {len(found):,} groups: --limit N shows more.", err=True)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@click.argument("letter_id", metavar="ID")
@json_option
@letters_verb
def show(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    letter_id: str,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Show one dead letter.

    What failed, why, when and where, every attempt, and the message itself. ID is a letter's id,
    a task's id (its newest letter is shown), or the beginning of one of them.
    """
    from celery_resilience.cli.letter_json import as_json as json_of
    from celery_resilience.cli.output import print_blocks
    from celery_resilience.cli.render_letter import story
    from celery_resilience.messages.redact import printable

    filed = letters.find(letter_id)
    if as_json:
        click.echo(json.dumps(json_of(filed, redactor, whole=True), indent=2))
        return
    name = printable(filed.name)
    ctx.obj.echo(f"Dead letter {ctx.obj.style(name, bold=True)} in {printable(filed.queue)}")
    print_blocks(ctx, story(filed, redactor))
    ctx.obj.echo(f"\nTo replay it: {app_of(ctx)} dlq replay {name}")


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--fail-if-any", is_flag=True, help="Exit with 1 if there are dead letters.")
@filtering("letters")
@json_option
@letters_verb
def count(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    fail_if_any: bool,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Count the dead letters of each queue, by the broker's own figures.

    Exits with 3, and prints null in JSON, where the number is not known: RabbitMQ does not count
    letters that another command is reading.
    """
    from celery_resilience.cli.text import columns, room

    tallies = tallies_of(ctx)
    numbers: dict[str, int] = {tally.queue: tally.number for tally in tallies}
    if filters:
        numbers = {**dict.fromkeys(numbers, 0),
                   **Counter(filed.queue for filed in letters.list(filters=filters))}  # fmt: skip
    if as_json:
        known = {t.queue: None if t.unknown else numbers[t.queue] for t in tallies}
        click.echo(json.dumps(known, indent=2))
    else:
        least = {tally.queue: "at least " if tally.unknown else "" for tally in tallies}
        rows = [[queue, f"{least[queue]}{number:,}"] for queue, number in numbers.items()]
        for row in columns(rows, room(), elastic=(0,), numbers=(1,), keep_end=(0,)):
            ctx.obj.echo("  ".join(row))
    tell_elsewhere(ctx, letters)
    if fail_if_any and any(numbers.values()):
        ctx.exit(EX_FAILURE)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option(
    "--to-queue", metavar="QUEUE", help="Publish to QUEUE, not to the queue that each came from."
)
@changing("letters")
@letters_verb
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

    Each starts again with all its retries, in the queue that it came from. A letter is removed
    once the broker has confirmed its message: a crash in between leaves both, never neither. What
    happens to the message after that is up to the workers.
    """
    from celery_resilience.cli.change import change
    from celery_resilience.cli.letters import REPLAY, things
    from celery_resilience.operate.app_info import known_queues

    how = ", each to the queue that it came from"
    if to_queue is not None:
        if to_queue in letters.queues:
            raise click.UsageError(f"{to_queue} is a dead-letter queue: nothing would run there.")
        how = f", to {to_queue}"
        if to_queue not in known_queues(ctx.obj.app):
            how += " (which this app does not know)"
    move = functools.partial(letters.replay, to_queue=to_queue)
    change(ctx, things(ctx, letters, redactor), selection, REPLAY, move, how=how)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@because
@changing("letters")
@letters_verb
def drop(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    selection: Selection,
    **kwargs: Any,
) -> None:
    """Remove dead letters for good: they cannot be replayed any more."""
    from celery_resilience.cli.change import change
    from celery_resilience.cli.letters import DROP, things

    change(ctx, things(ctx, letters, redactor), selection, DROP, letters.drop, how=" for good")
