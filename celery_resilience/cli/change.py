"""What every verb that changes letters or retries does: choose, preview or ask, and carry out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from celery.platforms import EX_FAILURE

from celery_resilience.cli.confirm import ask, ask_why
from celery_resilience.cli.options import Selection, up_to
from celery_resilience.cli.output import Verb, carry_out, print_array
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.retries import Retries

__all__ = ["Things", "change"]


@dataclass(frozen=True)
class Things:
    """The letters or the scheduled retries that a verb may change."""

    session: DeadLetters | Retries
    #: How many there are, by the broker's own figures.
    count: Callable[[], int]
    #: So many of them, in words.
    many: Callable[[int], str]
    #: The id of one.
    id_of: Callable[[Any], str]
    #: One of them, for a program.
    as_json: Callable[[Any], dict[str, Any]]
    #: Prints some of them as a table.
    print_rows: Callable[[Sequence[Any]], None]
    #: Where they lie, for a question.
    where: str = ""

    def number(self, selection: Selection) -> int:
        """How many *selection* means, which names no ids."""
        if selection.filters:
            return sum(1 for _ in self.session.list(selection.limit, selection.filters))
        there = self.count()
        return there if selection.limit is None else min(selection.limit, there)


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
    number = things.number(selection) if chosen is None else len(chosen)
    if selection.dry_run:
        rows = number if selection.as_json else min(number, up_to(None) or number)
        shown = session.list(rows, selection.filters) if chosen is None else chosen
        if selection.as_json:
            print_array(map(things.as_json, shown))
            return
        things.print_rows(list(shown))
        ctx.obj.echo(f"would {verb.infinitive} {number:,}{preview}")
        return
    if verb.drops or not selection.yes:
        session.close()  # a broker may hang up on a connection that is idle during a question
    options = {"because": ask_why(number, selection)} if verb.drops else {}
    if (number or first) and not selection.yes:
        what = things.many(number)
        question = f"{verb.infinitive.capitalize()} {what}{things.where}{how}?"
        ask(f"{what} to {verb.infinitive}", question)
    results = move(
        "all" if chosen is None else [things.id_of(one) for one in chosen],
        filters=selection.filters,
        limit=number if chosen is None else None,
        **options,
    )
    also = {**options, **(first() if first else {})}
    if not carry_out(ctx, verb, results, number, selection.as_json, also):
        ctx.exit(EX_FAILURE)
