"""``celery -A app dlq``: inspect dead letters, replay them, or drop them."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import functools
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
from celery_resilience.cli.session import Call, letters_verb, tallies_of, tell_elsewhere

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.operate.dead_letters import DeadLetters

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
    call: Call[DeadLetters],
    *,
    limit: int | None,
    newest_first: bool,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """List dead letters, the oldest of each queue first."""
    from celery_resilience.cli.letters import things
    from celery_resilience.cli.listing import print_list

    at = (lambda filed: filed.letter.at) if newest_first else None
    print_list(call.ctx, things(call), filters, limit, as_json, at)
    tell_elsewhere(call.ctx, call.session)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@filtering("letters")
@json_option
@letters_verb
def groups(
    call: Call[DeadLetters], *, limit: int | None, filters: Filters, as_json: bool, **kwargs: Any
) -> None:
    """Group dead letters by cause, the largest group first.

    A group is a type of error in one place of your code, with a line for each task that it has
    hit. Every verb takes its name with --group.
    """
    from celery_resilience.cli.letters import things
    from celery_resilience.cli.listing import print_none, watched
    from celery_resilience.cli.output import print_array
    from celery_resilience.cli.render_groups import as_json as json_of
    from celery_resilience.cli.render_groups import lines
    from celery_resilience.operate.groups import grouped

    those = things(call)
    browsed = watched(call.ctx, call.session.list(filters=filters), those.count(), "Reading")
    found = grouped(filed.letter for filed in browsed)
    shown = found[: up_to(limit, as_json)]
    if as_json:
        print_array(json_of(group, call.redactor) for group in shown)
    elif shown:
        heading, *rows = lines(shown, call.redactor)
        call.echo(call.bold(heading))
        for row in rows:
            call.echo(row)
    else:
        print_none(call.ctx, those, filters)
    if len(shown) < len(found):
        more = f"{len(shown):,} of {len(found):,} groups: --limit N shows more."
        call.ctx.obj.echo(more, err=True)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@click.argument("letter_id", metavar="ID")
@json_option
@letters_verb
def show(call: Call[DeadLetters], *, letter_id: str, as_json: bool, **kwargs: Any) -> None:
    """Show one dead letter.

    What failed, why, when and where, every attempt, and the message itself. ID is a letter's id,
    a task's id (its newest letter is shown), or the beginning of one of them.
    """
    from celery_resilience.cli.letter_json import as_json as json_of
    from celery_resilience.cli.output import print_blocks, print_json
    from celery_resilience.cli.render_letter import story
    from celery_resilience.messages.redact import printable

    filed = call.session.find(letter_id)
    if as_json:
        print_json(json_of(filed, call.redactor, whole=True))
        return
    name = printable(filed.name)
    call.echo(f"Dead letter {call.bold(name)} in {printable(filed.queue)}")
    print_blocks(call.ctx, story(filed, call.redactor))
    call.echo(f"\nTo replay it: {app_of(call.ctx)} dlq replay {name}")


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--fail-if-any", is_flag=True, help="Exit with 1 if there are dead letters.")
@filtering("letters")
@json_option
@letters_verb
def count(
    call: Call[DeadLetters], *, fail_if_any: bool, filters: Filters, as_json: bool, **kwargs: Any
) -> None:
    """Count the dead letters of each queue, by the broker's own figures.

    Exits with 3, and prints null in JSON, where the number is not known: RabbitMQ does not count
    letters that another command is reading.
    """
    from celery_resilience.cli.output import print_counts, print_json

    tallies = tallies_of(call.ctx)
    numbers: dict[str, int] = {tally.queue: tally.number for tally in tallies}
    if filters:
        accepted = Counter(filed.queue for filed in call.session.list(filters=filters))
        numbers = {queue: accepted[queue] for queue in numbers}
    if as_json:
        print_json({t.queue: None if t.unknown else numbers[t.queue] for t in tallies})
    else:
        least = {tally.queue: "at least " if tally.unknown else "" for tally in tallies}
        rows = [(queue, f"{least[queue]}{number:,}") for queue, number in numbers.items()]
        print_counts(call.ctx, rows)
    tell_elsewhere(call.ctx, call.session)
    if fail_if_any and any(numbers.values()):
        call.ctx.exit(EX_FAILURE)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option(
    "--to-queue", metavar="QUEUE", help="Publish to QUEUE, not to the queue that each came from."
)
@changing("letters")
@letters_verb
def replay(
    call: Call[DeadLetters], *, selection: Selection, to_queue: str | None, **kwargs: Any
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
        if to_queue in call.session.queues:
            raise click.UsageError(f"{to_queue} is a dead-letter queue: nothing would run there.")
        how = f", to {to_queue}"
        if to_queue not in known_queues(call.ctx.obj.app):
            how += " (which this app does not know)"
    move = functools.partial(call.session.replay, to_queue=to_queue)
    change(call.ctx, things(call), selection, REPLAY, move, how=how)


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@because
@changing("letters")
@letters_verb
def drop(call: Call[DeadLetters], *, selection: Selection, **kwargs: Any) -> None:
    """Remove dead letters for good: they cannot be replayed any more."""
    from celery_resilience.cli.change import change
    from celery_resilience.cli.letters import DROP, things

    change(call.ctx, things(call), selection, DROP, call.session.drop, how=" for good")
