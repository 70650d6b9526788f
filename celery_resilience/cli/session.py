"""What all verbs of ``dlq`` do before and after their own work."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from celery_resilience.cli.options import (
    EX_NOT_KNOWN,
    Selection,
    ending,
    needs_app,
    option,
    timeout_option,
    up_to,
)

if TYPE_CHECKING:
    from celery_resilience.messages.redact import Redactor
    from celery_resilience.operate.dead_letters import DeadLetters, Filed, Tally

__all__ = ["letters_verb", "number_of", "tallies_of", "tell_elsewhere", "there", "would"]

queue_option = option(
    "--dead-letter-queue",
    metavar="QUEUE",
    help="Look into QUEUE and no other; {queue} stands for every queue of the app. Without it: "
    "all that settings, tasks and rules name.",
)
all_queues_option = option(
    "--all-queues",
    is_flag=True,
    help="Look as well into queues that letters were written to under other settings (Redis).",
)


def letters_verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's letters, and end it with the exit code of whatever goes wrong."""

    @functools.wraps(command)
    def run(
        ctx: click.Context,
        /,
        dead_letter_queue: str | None,
        all_queues: bool,
        timeout: float,
        **options: Any,
    ) -> None:
        from celery_resilience.messages.redact import Redactor
        from celery_resilience.operate.dead_letters import DeadLetters

        needs_app(ctx)
        if dead_letter_queue is None and ctx.parent is not None:
            dead_letter_queue = ctx.parent.params.get("dead_letter_queue")
        if dead_letter_queue is not None and all_queues:
            raise click.UsageError("Give either --dead-letter-queue or --all-queues.")
        with (
            ending(),
            DeadLetters(
                ctx.obj.app,
                dead_letter_queue=dead_letter_queue,
                timeout=timeout,
                all_queues=all_queues,
            ) as letters,
            _known(ctx, letters),
        ):
            command(ctx, letters, Redactor.of(letters.settings), **options)

    return queue_option(all_queues_option(timeout_option(click.pass_context(run))))


@contextmanager
def _known(ctx: click.Context, letters: DeadLetters) -> Iterator[None]:
    """Tell afterwards what could not be seen of the letters, and end with 3 if that is so."""
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.dead_letters import AmbiguousId, NoSuchId

    tallies = ctx.meta["tallies"] = letters.tally()
    missing = [f"{one.queue}: {one.unknown}" for one in tallies if one.unknown]
    if letters.problem:
        missing.append(f"queues that only policies name are not known: {letters.problem}")
    code = EX_NOT_KNOWN if missing else 0
    try:
        yield
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except AmbiguousId:
        raise
    except NoSuchId as exc:
        tell_elsewhere(ctx, letters)
        if not missing:
            raise
        ctx.obj.error(printable(str(exc)))
    for why in missing:
        ctx.obj.echo(f"Not known: {printable(why)}.", err=True)
    ctx.exit(code)


def tell_elsewhere(ctx: click.Context, letters: DeadLetters) -> None:
    from celery_resilience.cli import output as printing
    from celery_resilience.messages.redact import printable

    for queue, number in letters.elsewhere().items():
        what = f"{printing.many(number)} in {printable(queue)}, which no setting names"
        ctx.obj.echo(f"{what}: --all-queues, or --dead-letter-queue.", err=True)


def tallies_of(ctx: click.Context) -> list[Tally]:
    tallies: list[Tally] = ctx.meta["tallies"]
    return tallies


def there(ctx: click.Context) -> int:
    """How many letters there are to see, by the broker's own figures."""
    return sum(tally.number for tally in tallies_of(ctx))


def number_of(ctx: click.Context, letters: DeadLetters, selection: Selection) -> int:
    """How many letters *selection* means, which names no ids."""
    if selection.filters:
        return sum(1 for _ in letters.list(selection.limit, selection.filters))
    most = there(ctx)
    return most if selection.limit is None else min(selection.limit, most)


def would(
    ctx: click.Context,
    letters: DeadLetters,
    redactor: Redactor,
    selection: Selection,
    chosen: Sequence[Filed] | None,
    number: int,
    verb: str,
) -> None:
    """Show what a verb would do, and to which letters."""
    from celery_resilience.cli import output as printing
    from celery_resilience.cli import render_letter as story

    rows = number if selection.as_json else min(number, up_to(None) or number)
    filed = letters.list(rows, selection.filters) if chosen is None else chosen
    if selection.as_json:
        printing.print_array([story.as_json(one, redactor) for one in filed])
        return
    shown = [printing.row_of(one, redactor) for one in filed]
    printing.print_letters(ctx, letters, sorted(shown, key=lambda row: row[0]))
    ctx.obj.echo(f"would {verb} {number:,}")
