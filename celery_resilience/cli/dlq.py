"""``celery -A app dlq``: look at dead letters, and replay them."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE, EX_UNAVAILABLE

if TYPE_CHECKING:
    from celery_resilience.deadletters import DeadLetters, Filed
    from celery_resilience.redact import Redactor

    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["dlq"]

F = TypeVar("F", bound=Callable[..., Any])

_GROUP = "Dead Letter Options"
EXIT_CODES = """\b
Exit codes:
  0   done
  1   it failed, nothing was found, or you answered no
  2   wrong usage
  69  the broker can't be reached"""

_DRY_RUN_ROWS = 20


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A Celery option in our help group."""
    return click.option(*names, cls=CeleryOption, help_group=_GROUP, **attributes)


def json_option(command: F) -> F:
    """``--json``, as Celery's own commands have it."""
    return option("-j", "--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )


queue_option = option(
    "--dead-letter-queue",
    metavar="QUEUE",
    help="Look into QUEUE and no other; {queue} stands for every queue of the app. Without it: "
    "all that settings, tasks and rules name.",
)


def _verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's letters, and end it with the exit code of whatever goes wrong."""

    @functools.wraps(command)
    def run(ctx: click.Context, /, dead_letter_queue: str | None, **options: Any) -> None:
        from celery.exceptions import ImproperlyConfigured

        from celery_resilience.deadletters import DeadLetters, Unreachable
        from celery_resilience.errors import ResilienceError
        from celery_resilience.redact import Redactor, printable

        if dead_letter_queue is None and ctx.parent is not None:
            dead_letter_queue = ctx.parent.params.get("dead_letter_queue")
        try:
            with DeadLetters(ctx.obj.app, dead_letter_queue=dead_letter_queue) as letters:
                command(ctx, letters, Redactor(letters.settings.redact), **options)
        except Unreachable as exc:
            raise CeleryCommandException(printable(str(exc)), EX_UNAVAILABLE) from exc
        except (ResilienceError, ImproperlyConfigured) as exc:
            raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc

    return queue_option(click.pass_context(run))


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
@option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="List the first N, the oldest of each queue first.",
)
@json_option
@_verb
def ls(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    limit: int,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """List dead letters, the oldest first."""
    from celery_resilience.cli import printing, story

    if as_json:
        printing.print_array(story.as_json(filed, redactor) for filed in letters.list(limit))
        return
    total = sum(letters.count().values())
    shown = printing.print_table(ctx, letters, redactor, letters.list(limit))
    if shown == 0 and total == 0:
        ctx.obj.echo(f"No dead letters in {printing.names(letters)}.")
    elif shown < total:
        ctx.obj.echo(f"{shown:,} of {printing.many(total)}: --limit N shows more.", err=True)


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
    ctx.obj.echo(f"\nTo replay it: {_command(ctx)} dlq replay {name}")


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
@click.argument("ids", metavar="[ID]...", nargs=-1)
@option("--all", "everything", is_flag=True, help="Replay every letter that lies there now.")
@option(
    "--limit", type=click.IntRange(min=0), metavar="N", help="With --all: the first N and no more."
)
@option("--to-queue", metavar="QUEUE", help="Publish to QUEUE, not to where each came from.")
@option("--dry-run", is_flag=True, help="Show what would be replayed, and replay nothing.")
@option("-y", "--yes", is_flag=True, help="Don't ask.")
@json_option
@_verb
def replay(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    *,
    ids: tuple[str, ...],
    everything: bool,
    limit: int | None,
    to_queue: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **kwargs: Any,
) -> None:
    """Publish the messages of dead letters again.

    They have all their retries before them, and go to the queues that they came from. A letter
    is removed when the broker has confirmed its message: a crash in between leaves both, never
    neither.
    """
    from celery_resilience.cli import printing

    if bool(ids) == everything:
        raise click.UsageError("Give the ids of letters, or --all.")
    if limit is not None and not everything:
        raise click.UsageError("--limit goes with --all.")
    if to_queue is not None and to_queue in letters.queues:
        raise click.UsageError(f"{to_queue} is a dead-letter queue: nothing would run there.")
    chosen = None if everything else letters.find_all(ids)
    if chosen is None:
        number = sum(letters.count().values())
        number = number if limit is None else min(limit, number)
    else:
        number = len(chosen)
    if dry_run:
        _would_replay(ctx, letters, redactor, chosen, number, as_json)
        return
    if number and not yes:
        _ask(ctx, letters, number, to_queue)
    results = letters.replay(
        "all" if chosen is None else [filed.letter.id for filed in chosen],
        limit=number if everything else None,
        to_queue=to_queue,
    )
    if not printing.carry_out(ctx, results, number, as_json):
        ctx.exit(EX_FAILURE)


def _would_replay(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    chosen: Sequence[Filed] | None,
    number: int,
    as_json: bool,
) -> None:
    from celery_resilience.cli import printing, story

    if as_json:
        filed = letters.list(number) if chosen is None else chosen
        printing.print_array(story.as_json(one, redactor) for one in filed)
        return
    rows = min(number, _DRY_RUN_ROWS)
    printing.print_table(ctx, letters, redactor, letters.list(rows) if chosen is None else chosen)
    ctx.obj.echo(f"would replay {number:,}")


def _ask(ctx: click.Context, letters: DeadLetters, number: int, to_queue: str | None) -> None:
    from celery_resilience.cli import printing
    from celery_resilience.deadletters import known_queues

    if not sys.stdin.isatty():
        raise CeleryCommandException(
            f"{printing.many(number)} to replay and nobody to ask: "
            "add --yes, or --dry-run to look first",
            EX_FAILURE,
        )
    letters.close()  # a broker may hang up on a connection that nobody uses
    where = "each to the queue that it came from"
    if to_queue is not None:
        where = f"to {to_queue}"
        if to_queue not in known_queues(ctx.obj.app):
            where += " (which this app does not know)"
    what = f"{printing.many(number)} of {printing.names(letters)}"
    click.confirm(f"Replay {what}, {where}?", abort=True, err=True)


def _command(ctx: click.Context) -> str:
    """How ``celery`` was called, as far as the app goes."""
    root = ctx.find_root()
    app = root.params.get("app")
    return f"celery -A {app}" if isinstance(app, str) else "celery"
