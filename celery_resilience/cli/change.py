"""What every verb that changes letters or retries does: choose, preview or ask, and carry out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from celery_resilience.cli.listing import Things
from celery_resilience.cli.options import Selection, up_to
from celery_resilience.cli.output import Verb, carry_out, print_array

__all__ = ["change"]


def change(
    ctx: click.Context,
    things: Things,
    selection: Selection,
    verb: Verb,
    move: Callable[..., Iterator[Any]],
    *,
    how: str = "",
    preview: str = "",
    first: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Do by *move* what *verb* does to those of *things* that *selection* means.

    *how* ends the question that is asked before, *preview* what is said without doing it. *first*
    is done before, and returns what is told of it at the end.
    """
    session = things.session
    chosen = session.find_all(selection.ids) if selection.ids else None
    number = _number(things, selection) if chosen is None else len(chosen)
    if selection.dry_run:
        rows = number if selection.as_json else min(number, up_to(None) or number)
        shown = session.list(rows, selection.filters) if chosen is None else chosen
        if selection.as_json:
            print_array(map(things.as_json, shown))
            return
        things.print_rows([things.as_row(one) for one in shown])
        ctx.obj.echo(f"would {verb.infinitive} {number:,}{preview}")
        return
    if verb.drops or not selection.yes:
        session.close()  # a broker may hang up on a connection that is idle during a question
    options = {"because": _ask_why(number, selection)} if verb.drops else {}
    if (number or first) and not selection.yes:
        what, where = things.many(number), things.where and f" of {things.where}"
        _ask(
            f"{what} to {verb.infinitive}",
            f"{verb.infinitive.capitalize()} {what}{where}{how}?",
        )
    results = move(
        "all" if chosen is None else [things.id_of(one) for one in chosen],
        filters=selection.filters,
        limit=number if chosen is None else None,
        **options,
    )
    also = {**options, **(first() if first else {})}
    if not carry_out(ctx, verb, results, number, selection.as_json, also):
        ctx.exit(EX_FAILURE)


def _number(things: Things, selection: Selection) -> int:
    """How many *selection* means, which names no ids."""
    if selection.filters:
        return sum(1 for _ in things.session.list(selection.limit, selection.filters))
    there = things.count()
    return there if selection.limit is None else min(selection.limit, there)


def _ask(what: str, question: str) -> None:
    """Ask on the terminal; without one, refuse to change *what*."""
    if not sys.stdin.isatty():
        raise CeleryCommandException(
            f"{what}: not a terminal, cannot prompt: pass --yes, or --dry-run to preview",
            EX_FAILURE,
        )
    click.confirm(question, abort=True, err=True)


def _ask_why(number: int, selection: Selection) -> str:
    """Why *number* letters or retries are removed: as it was typed, or by a prompt.

    Without a terminal more than one needs ``--yes`` and ``--because``.
    """
    if number < 2 or selection.because:
        return selection.because
    if not sys.stdin.isatty():
        why = "not a terminal, cannot prompt: pass --yes and --because WHY"
        raise click.UsageError(f"{number:,} to drop: {why}")
    return str(click.prompt("Because", err=True))
