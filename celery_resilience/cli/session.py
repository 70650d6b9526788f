"""What all verbs of ``dlq`` and ``retries`` do before and after their own work."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from celery_resilience.cli.exits import EX_NOT_KNOWN, ending, needs_app
from celery_resilience.cli.options import option, timeout_option

if TYPE_CHECKING:
    from celery_resilience.messages.redact import Redactor
    from celery_resilience.operate.dead_letters import DeadLetters, Tally
    from celery_resilience.operate.retries import Retries

__all__ = ["Call", "letters_verb", "retries_verb", "tallies_of", "tell_elsewhere"]

S = TypeVar("S", "DeadLetters", "Retries")

queue_option = option(
    "--dead-letter-queue",
    metavar="QUEUE",
    help="Read QUEUE only; {queue} stands for every queue of the app. Default: all that "
    "settings, tasks and rules name.",
)
all_queues_option = option(
    "--all-queues",
    is_flag=True,
    help="Also read queues that letters were written to under other settings (Redis).",
)


@dataclass(frozen=True)
class Call(Generic[S]):
    """What a verb is called with besides its options: the app's letters or scheduled retries, and
    what masks their texts."""

    ctx: click.Context
    session: S
    redactor: Redactor

    def echo(self, text: str) -> None:
        """Print *text* on stdout."""
        self.ctx.obj.echo(text)

    def bold(self, text: str) -> str:
        """*text* for a heading."""
        return str(self.ctx.obj.style(text, bold=True))


def _verb(
    opened: Callable[[click.Context, float, dict[str, Any]], AbstractContextManager[Any]],
    command: Callable[..., None],
) -> Callable[..., Any]:
    """Give a verb what *opened* takes its options for, and end it with the exit code of whatever
    goes wrong."""

    @functools.wraps(command)
    def run(ctx: click.Context, /, timeout: float, **options: Any) -> None:
        from celery_resilience.messages.redact import Redactor

        needs_app(ctx)
        with ending(), opened(ctx, timeout, options) as session:
            command(Call(ctx, session, Redactor.of(session.settings)), **options)

    return timeout_option(click.pass_context(run))


def letters_verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's letters."""
    return queue_option(all_queues_option(_verb(_letters, command)))


def retries_verb(command: Callable[..., None]) -> Callable[..., Any]:
    """Give a verb the app's scheduled retries."""
    return _verb(_retries, command)


def _retries(ctx: click.Context, timeout: float, options: dict[str, Any]) -> Retries:
    from celery_resilience.operate.retries import Retries

    return Retries(ctx.obj.app, timeout)


@contextmanager
def _letters(ctx: click.Context, timeout: float, options: dict[str, Any]) -> Iterator[DeadLetters]:
    from celery_resilience.operate.dead_letters import DeadLetters

    queue, all_queues = options.pop("dead_letter_queue"), options.pop("all_queues")
    if queue is None and ctx.parent is not None:
        queue = ctx.parent.params.get("dead_letter_queue")
    if queue is not None and all_queues:
        raise click.UsageError("Give either --dead-letter-queue or --all-queues.")
    with (
        DeadLetters(
            ctx.obj.app, dead_letter_queue=queue, timeout=timeout, all_queues=all_queues
        ) as letters,
        _known(ctx, letters),
    ):
        yield letters


@contextmanager
def _known(ctx: click.Context, letters: DeadLetters) -> Iterator[None]:
    """Tell afterwards what could not be seen of the letters, and end with 3 if that is so."""
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.dead_letters import AmbiguousId, NoSuchId

    tallies = ctx.meta["tallies"] = letters.tally()
    missing = [f"{one.queue}: {one.unknown}" for one in tallies if one.unknown]
    if letters.problem:
        missing.append(f"queues named only by policies: {letters.problem}")
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
    from celery_resilience.cli.text import many_letters
    from celery_resilience.messages.redact import printable

    for queue, number in letters.elsewhere().items():
        what = f"{many_letters(number)} in {printable(queue)}, which no setting names"
        ctx.obj.echo(f"{what}: --all-queues, or --dead-letter-queue.", err=True)


def tallies_of(ctx: click.Context) -> list[Tally]:
    """How many letters there are to see in each queue, by the broker's own figures."""
    tallies: list[Tally] = ctx.meta["tallies"]
    return tallies
