"""``celery -A app retries``: inspect scheduled retries, run, reschedule, bury or drop them."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_resilience.cli.exits import EXIT_CODES, app_of
from celery_resilience.cli.options import (
    Selection,
    because,
    changing,
    filtering,
    json_option,
    limit_option,
    option,
    span,
)
from celery_resilience.cli.session import Call, retries_verb

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.operate.retries import Retries

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["retries"]


@click.group(cls=DYMGroup, epilog=EXIT_CODES)
@click.pass_context
@handle_preload_options
def retries(ctx: click.Context, **kwargs: Any) -> None:
    """Inspect and change scheduled retries: those that wait in the broker until they are due.

    Inspecting changes nothing. Every change is one step in the broker: no retry is lost, and none
    is moved twice, by several operators either.
    """


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@filtering("retries")
@json_option
@retries_verb
def ls(
    call: Call[Retries], *, limit: int | None, filters: Filters, as_json: bool, **kwargs: Any
) -> None:
    """List scheduled retries, in each queue those first that are due first."""
    from celery_resilience.cli.listing import print_list
    from celery_resilience.cli.scheduled import things, unlisted

    if not unlisted(call, as_json):
        print_list(call.ctx, things(call), filters, limit, as_json)


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--queue", metavar="QUEUE", help="Count those of QUEUE alone.")
@json_option
@retries_verb
def count(call: Call[Retries], *, queue: str | None, as_json: bool, **kwargs: Any) -> None:
    """Count the scheduled retries of each queue."""
    from celery_resilience.cli.output import print_counts, print_json
    from celery_resilience.cli.scheduled import unlisted

    if unlisted(call, as_json):
        return
    counts = call.session.count()
    if queue is not None:
        counts = {queue: counts.get(queue, 0)}
    if as_json:
        print_json(counts)
    else:
        print_counts(call.ctx, [(name, f"{number:,}") for name, number in counts.items()])


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@click.argument("task_id", metavar="ID")
@json_option
@retries_verb
def show(call: Call[Retries], *, task_id: str, as_json: bool, **kwargs: Any) -> None:
    """Show one scheduled retry.

    When it is due, every attempt so far, and its arguments and headers. ID is a task id, or its
    first characters.
    """
    from celery_resilience.cli.output import print_blocks, print_json
    from celery_resilience.cli.render_retry import as_json as json_of
    from celery_resilience.cli.render_retry import story
    from celery_resilience.messages.redact import printable

    found = call.session.find_all([task_id])
    if as_json:
        told = [json_of(retry, call.redactor, whole=True) for retry in found]
        print_json(told[0] if len(told) == 1 else told)
        return
    for retry in found:
        name = printable(retry.task_id)
        call.echo(f"Scheduled retry of {call.bold(name)}")
        print_blocks(call.ctx, story(retry, call.redactor))
    call.echo(f"\nTo run it now: {app_of(call.ctx)} retries run {name}")


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@retries_verb
def run(call: Call[Retries], *, selection: Selection, **kwargs: Any) -> None:
    """Run scheduled retries now, each in its queue."""
    from celery_resilience.cli.scheduled import RUN, change_retries

    change_retries(call, selection, RUN, call.session.run, " now")


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@retries_verb
def bury(call: Call[Retries], *, selection: Selection, **kwargs: Any) -> None:
    """Turn scheduled retries into dead letters.

    Each goes to the dead-letter queue that a failure would have put it into, with all its
    attempts, reason manual; dlq replay brings it back.
    """
    from celery_resilience.cli.scheduled import BURY, change_retries

    change_retries(call, selection, BURY, call.session.bury)


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@because
@changing("retries")
@retries_verb
def drop(call: Call[Retries], *, selection: Selection, **kwargs: Any) -> None:
    """Remove scheduled retries for good: they are neither run nor kept.

    Celery is told that their tasks were revoked. celery purge does not reach them: it empties
    work queues.
    """
    from celery_resilience.cli.scheduled import DROP, change_retries

    change_retries(call, selection, DROP, call.session.drop, " for good")


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--in", "delay", metavar="SPAN", callback=span, help="Due in SPAN from now: 90s, 5m, 2h.")
@option(
    "--spread", metavar="SPAN", callback=span, help="Spread them evenly over SPAN, from then on."
)
@changing("retries")
@retries_verb
def reschedule(
    call: Call[Retries],
    *,
    selection: Selection,
    delay: float | None,
    spread: float | None,
    **kwargs: Any,
) -> None:
    """Change when retries are due.

    --spread keeps them apart: each is due at a random moment of that time. With --in it begins
    then, without it now.
    """
    from celery_resilience.cli.scheduled import RESCHEDULE, change_retries
    from celery_resilience.cli.text import span as in_words

    if delay is None and spread is None:
        raise click.UsageError("Give --in, --spread, or both.")
    move = functools.partial(call.session.reschedule, delay=delay or 0.0, spread=spread or 0.0)
    when = f" in {in_words(delay)}" if delay is not None else ""
    if spread is not None:
        when += f" spread over {in_words(spread)}"
    change_retries(call, selection, RESCHEDULE, move, when)


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@retries_verb
def release(call: Call[Retries], *, selection: Selection, **kwargs: Any) -> None:
    """Return scheduled retries to plain Celery.

    For a rollback to stock workers: each goes into its queue with the rest of its delay as eta,
    and is held by the worker that receives it. With --all, messages held by dead workers of ours
    are requeued too.
    """
    from celery_resilience.cli.scheduled import RELEASE, change_retries

    everything = not selection.ids and not selection.filters
    orphans = sum(call.session.orphans().values()) if everything else 0
    change_retries(call, selection, RELEASE, call.session.release, orphans=orphans)
