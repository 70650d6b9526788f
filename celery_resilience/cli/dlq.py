"""``celery -A app dlq``: look at dead letters, replay them, or drop them."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.platforms import EX_FAILURE

from celery_resilience.cli.options import (
    EXIT_CODES,
    Selection,
    app_of,
    ask,
    ask_why,
    because,
    changing,
    filtering,
    json_option,
    limit_option,
    option,
    up_to,
)
from celery_resilience.cli.session import (
    letters_verb,
    number_of,
    tallies_of,
    tell_elsewhere,
    there,
    would,
)

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.messages.redact import Redactor
    from celery_resilience.operate.dead_letters import DeadLetters, Filed

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["dlq"]


@click.group(cls=DYMGroup, epilog=EXIT_CODES)
@click.option(
    "--dead-letter-queue", metavar="QUEUE", help="Look into QUEUE and no other, whatever the verb."
)
@click.pass_context
@handle_preload_options
def dlq(ctx: click.Context, **kwargs: Any) -> None:
    """Look at dead letters, replay them, or drop them.

    Looking takes nothing out: no letter is removed, reordered or delayed.
    """


@dlq.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@option("--newest", "newest_first", is_flag=True, help="The newest first.")
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
    from celery_resilience.cli import output as printing
    from celery_resilience.cli import render_letter as story
    from celery_resilience.cli.listing import first, newest, watched

    def made(filed: Filed) -> Any:
        if as_json:
            return story.as_json(filed, redactor)
        return printing.row_of(filed, redactor)

    most, number = up_to(limit, as_json), there(ctx)
    if newest_first:
        looked = watched(ctx, letters.list(filters=filters), number, "Reading")
        listing = newest(looked, made, most, lambda filed: filed.letter.at)
    elif filters or most is None:
        looked = watched(ctx, letters.list(filters=filters), number, "Reading")
        listing = first(looked, made, most)
    else:
        listing = first(letters.list(most), made, most, number)
    if as_json:
        printing.print_array(listing.shown)
    elif listing.shown:
        rows = listing.shown
        # The newest of all, whichever queue they lie in; each queue has one heading.
        printing.print_letters(ctx, letters, sorted(rows, key=lambda row: row[0]))
    elif not listing.total:
        such = "such " if filters else ""
        ctx.obj.echo(f"No {such}dead letters in {printing.names(letters)}.")
    if len(listing.shown) < listing.total:
        of = f"{len(listing.shown):,} of {printing.many(listing.total)}"
        ctx.obj.echo(f"{of}: --limit N or --limit all shows more.", err=True)
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
    """List what is failing: dead letters by their cause, the most first.

    A group is a type of error in one place of your code, with a line for each task that it has
    hit. --group takes its name, in every verb.
    """
    from celery_resilience.cli import output as printing
    from celery_resilience.cli import render_groups as grouped
    from celery_resilience.cli.listing import watched
    from celery_resilience.operate.groups import grouped as groups_of

    looked = watched(ctx, letters.list(filters=filters), there(ctx), "Reading")
    found = groups_of(filed.letter for filed in looked)
    most = up_to(limit, as_json)
    shown = found[:most]
    if as_json:
        printing.print_array(grouped.as_json(group, redactor) for group in shown)
    elif shown:
        heading, *rows = grouped.lines(shown, redactor)
        ctx.obj.echo(ctx.obj.style(heading, bold=True))
        for row in rows:
            ctx.obj.echo(row)
    else:
        such = "such " if filters else ""
        ctx.obj.echo(f"No {such}dead letters in {printing.names(letters)}.")
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
    """Tell the story of one dead letter.

    What died, why, when and where, every attempt, and what came with it. ID is a letter's, or a
    task's, whose newest letter it means, or how one of them begins.
    """
    from celery_resilience.cli import render_letter as story
    from celery_resilience.messages.redact import printable

    filed = letters.find(letter_id)
    if as_json:
        click.echo(json.dumps(story.as_json(filed, redactor, whole=True), indent=2))
        return
    name = printable(filed.name)
    ctx.obj.echo(f"Dead letter {ctx.obj.style(name, bold=True)} in {printable(filed.queue)}")
    for title, text in story.story(filed, redactor):
        ctx.obj.echo("")
        if title:
            ctx.obj.echo(ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)
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

    Exits with 3, and says null in JSON, where it can't be known: RabbitMQ does not count the
    letters that somebody is looking at.
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
@option("--to-queue", metavar="QUEUE", help="Publish to QUEUE, not to where each came from.")
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

    They have all their retries before them, and go to the queues that they came from. A letter
    is removed when the broker has confirmed its message: a crash in between leaves both, never
    neither. What becomes of what is published, its workers tell.
    """
    from celery_resilience.cli import output as printing

    if to_queue is not None and to_queue in letters.queues:
        raise click.UsageError(f"{to_queue} is a dead-letter queue: nothing would run there.")
    chosen = letters.find_all(selection.ids) if selection.ids else None
    number = number_of(ctx, letters, selection) if chosen is None else len(chosen)
    if selection.dry_run:
        would(ctx, letters, redactor, selection, chosen, number, "replay")
        return
    if number and not selection.yes:
        _ask(ctx, letters, number, to_queue)
    results = letters.replay(
        "all" if chosen is None else [filed.name for filed in chosen],
        filters=selection.filters,
        limit=number if chosen is None else None,
        to_queue=to_queue,
    )
    if not printing.carry_out(ctx, printing.REPLAY, results, number, selection.as_json):
        ctx.exit(EX_FAILURE)


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
    """Remove dead letters for good: nobody can replay them any more."""
    from celery_resilience.cli import output as printing

    chosen = letters.find_all(selection.ids) if selection.ids else None
    number = number_of(ctx, letters, selection) if chosen is None else len(chosen)
    if selection.dry_run:
        would(ctx, letters, redactor, selection, chosen, number, "drop")
        return
    letters.close()  # a broker may hang up on a connection that nobody uses
    why = ask_why(number, selection)
    if number and not selection.yes:
        what = printing.many(number)
        ask(f"{what} to drop", f"Drop {what} of {printing.names(letters)} for good?")
    results = letters.drop(
        "all" if chosen is None else [filed.name for filed in chosen],
        filters=selection.filters,
        limit=number if chosen is None else None,
        because=why,
    )
    also = {"because": why} if why else None
    if not printing.carry_out(ctx, printing.DROP, results, number, selection.as_json, also):
        ctx.exit(EX_FAILURE)


def _ask(ctx: click.Context, letters: DeadLetters, number: int, to_queue: str | None) -> None:
    from celery_resilience.cli import output as printing
    from celery_resilience.operate.dead_letters import known_queues

    letters.close()  # a broker may hang up on a connection that nobody uses
    where = "each to the queue that it came from"
    if to_queue is not None:
        where = f"to {to_queue}"
        if to_queue not in known_queues(ctx.obj.app):
            where += " (which this app does not know)"
    what = f"{printing.many(number)} of {printing.names(letters)}"
    ask(f"{printing.many(number)} to replay", f"Replay {what}, {where}?")
