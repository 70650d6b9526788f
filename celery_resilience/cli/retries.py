"""``celery -A app retries``: look at retries that wait in the broker, and move them."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_resilience.cli.options import (
    EXIT_CODES,
    Selection,
    app_of,
    because,
    changing,
    ending,
    filtering,
    json_option,
    limit_option,
    needs_app,
    option,
    span,
    timeout_option,
    up_to,
)

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.messages.redact import Redactor
    from celery_resilience.operate.retries import Retries

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["retries"]


def _verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's waiting retries, and end it with the right exit code."""

    @functools.wraps(command)
    def run(ctx: click.Context, /, timeout: float, **options: Any) -> None:
        from celery_resilience.messages.redact import Redactor
        from celery_resilience.operate.retries import Retries

        needs_app(ctx)
        with ending(), Retries(ctx.obj.app, timeout) as waiting:
            command(ctx, waiting, Redactor.of(waiting.settings), **options)

    return timeout_option(click.pass_context(run))


@click.group(cls=DYMGroup, epilog=EXIT_CODES)
@click.pass_context
@handle_preload_options
def retries(ctx: click.Context, **kwargs: Any) -> None:
    """Look at retries that wait in the broker, and move them.

    Looking changes nothing. Every move is one step in the broker: no retry is lost, and none is
    moved twice, whoever else moves them.
    """


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@limit_option
@filtering("retries")
@json_option
@_verb
def ls(
    ctx: click.Context,
    waiting: Retries,
    redactor: Redactor,
    *,
    limit: int | None,
    filters: Filters,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """List waiting retries, in each queue those first that are due first."""
    from celery_resilience.cli import output as printing
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.cli.listing import first, watched

    if waits.unlisted(ctx, waiting, as_json):
        return
    most, number = up_to(limit, as_json), sum(waiting.count().values())
    make = waits.as_json if as_json else waits.as_row
    if filters or most is None:
        looked = watched(ctx, waiting.list(filters=filters), number, "Reading")
        listing = first(looked, lambda retry: make(retry, redactor), most)
    else:
        listing = first(waiting.list(most), lambda retry: make(retry, redactor), most, number)
    if as_json:
        printing.print_array(listing.shown)
    elif listing.shown:
        printing.print_table(ctx, listing.shown, waits.headlines)
    elif not listing.total:
        ctx.obj.echo("No such retry waits." if filters else "No retry waits.")
    if len(listing.shown) < listing.total:
        of = f"{len(listing.shown):,} of {waits.many(listing.total)}"
        ctx.obj.echo(f"{of}: --limit N or --limit all shows more.", err=True)


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--queue", metavar="QUEUE", help="Count those of QUEUE alone.")
@json_option
@_verb
def count(
    ctx: click.Context,
    waiting: Retries,
    redactor: Redactor,
    *,
    queue: str | None,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Count the waiting retries of each queue."""
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.cli.text import columns, room

    if waits.unlisted(ctx, waiting, as_json):
        return
    counts = waiting.count()
    if queue is not None:
        counts = {queue: counts.get(queue, 0)}
    if as_json:
        click.echo(json.dumps(counts, indent=2))
        return
    rows = [[name, f"{number:,}"] for name, number in counts.items()]
    for row in columns(rows, room(), elastic=(0,), numbers=(1,), keep_end=(0,)):
        ctx.obj.echo("  ".join(row))


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@click.argument("task_id", metavar="ID")
@json_option
@_verb
def show(
    ctx: click.Context,
    waiting: Retries,
    redactor: Redactor,
    *,
    task_id: str,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Tell the story of one waiting retry.

    When it is due, every attempt before, and what comes with it. ID is a task's, or how it
    begins.
    """
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.messages.redact import printable

    found = waiting.find_all([task_id])
    if as_json:
        told = [waits.as_json(retry, redactor, whole=True) for retry in found]
        click.echo(json.dumps(told[0] if len(told) == 1 else told, indent=2))
        return
    for retry in found:
        name = printable(retry.task_id)
        ctx.obj.echo(f"Waiting retry of {ctx.obj.style(name, bold=True)}")
        for title, text in waits.tell(retry, redactor):
            ctx.obj.echo("")
            if title:
                ctx.obj.echo(ctx.obj.style(title, bold=True))
            ctx.obj.echo(text)
    ctx.obj.echo(f"\nTo run it now: {app_of(ctx)} retries run {name}")


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@_verb
def run(
    ctx: click.Context, waiting: Retries, redactor: Redactor, *, selection: Selection, **kwargs: Any
) -> None:
    """Run waiting retries now, each in its queue."""
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.operate.scheduled_retry import Result

    waits.change(
        ctx, waiting, redactor, selection, waiting.run, "run", "Running", Result.RUN, " now"
    )


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@_verb
def bury(
    ctx: click.Context, waiting: Retries, redactor: Redactor, *, selection: Selection, **kwargs: Any
) -> None:
    """Make dead letters of waiting retries.

    Each goes to the dead-letter queue that a failure would have put it into, with all its
    attempts, reason manual; dlq replay brings it back.
    """
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.operate.scheduled_retry import Result

    waits.change(ctx, waiting, redactor, selection, waiting.bury, "bury", "Burying", Result.BURIED)


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@because
@changing("retries")
@_verb
def drop(
    ctx: click.Context, waiting: Retries, redactor: Redactor, *, selection: Selection, **kwargs: Any
) -> None:
    """Remove waiting retries for good: they are neither run nor kept.

    Celery is told that their tasks were revoked. celery purge does not reach them: it empties
    work queues.
    """
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.operate.scheduled_retry import Result

    waits.change(
        ctx, waiting, redactor, selection, waiting.drop, "drop", "Dropping", Result.DROPPED,
        " for good",
    )  # fmt: skip


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@option("--in", "delay", metavar="SPAN", callback=span, help="Due in SPAN from now: 90s, 5m, 2h.")
@option(
    "--spread", metavar="SPAN", callback=span, help="Spread them evenly over SPAN, from then on."
)
@changing("retries")
@_verb
def reschedule(
    ctx: click.Context,
    waiting: Retries,
    redactor: Redactor,
    *,
    selection: Selection,
    delay: float | None,
    spread: float | None,
    **kwargs: Any,
) -> None:
    """Let retries wait for another moment.

    --spread takes a herd apart: each is due at a random moment of that time. With --in it begins
    then, without it now.
    """
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.cli.text import span as told
    from celery_resilience.operate.scheduled_retry import Result

    if delay is None and spread is None:
        raise click.UsageError("Give --in, --spread, or both.")
    change = functools.partial(waiting.reschedule, delay=delay or 0.0, spread=spread or 0.0)
    when = f" in {told(delay)}" if delay is not None else ""
    if spread is not None:
        when += f" spread over {told(spread)}"
    waits.change(
        ctx, waiting, redactor, selection, change, "reschedule", "Rescheduling",
        Result.RESCHEDULED, when,
    )  # fmt: skip


@retries.command(cls=CeleryCommand, epilog=EXIT_CODES)
@changing("retries")
@_verb
def release(
    ctx: click.Context, waiting: Retries, redactor: Redactor, *, selection: Selection, **kwargs: Any
) -> None:
    """Give waiting retries back to plain Celery.

    For a rollback to stock workers: each goes into its queue with the rest of its delay as eta,
    and is held by the worker that receives it. With --all, what dead workers of ours held is given
    back too.
    """
    from celery_resilience.cli import render_retry as waits
    from celery_resilience.operate.scheduled_retry import Result

    waits.change(
        ctx, waiting, redactor, selection, waiting.release, "release", "Releasing",
        Result.RELEASED, orphans=not selection.ids and not selection.filters,
    )  # fmt: skip
