"""What the demo shows: a table redrawn in place on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence

import click

from celery_resilience.cli.text import cut
from celery_resilience.demo.ledger import Event, Ledger, State
from celery_resilience.demo.services import SERVICES

__all__ = ["Screen"]

#: What a terminal needs for the table: less gets plain lines.
WIDTH, HEIGHT = 80, 24
#: Seconds between two progress lines where nothing can be redrawn.
_EVERY = 3.0

_COLOURS = {State.DONE: "green", State.RETRYING: "yellow", State.DEAD: "red"}


class Screen:
    """Lines that stay, and below them some that change."""

    def __init__(self, ledger: Ledger) -> None:
        size = shutil.get_terminal_size((WIDTH, HEIGHT))
        #: Whether lines can be redrawn.
        self.live = (
            sys.stdout.isatty()
            and os.environ.get("TERM", "dumb") != "dumb"
            and size.columns >= WIDTH
            and size.lines >= HEIGHT
        )
        self._coloured = self.live and not os.environ.get("NO_COLOR")
        self._ledger = ledger
        self._began = time.monotonic()
        self._drawn = 0
        self._next = 0.0
        self._seen: set[str] = set()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def say(self, *lines: str, bold: bool = False) -> None:
        """Print lines that stay, below what there is."""
        self._drawn = 0
        for line in lines:
            click.echo(self._style(line, bold=True) if bold else line)

    def progress(self, act: str, last: bool = False) -> None:
        """Show how things stand in this *act*; *last*: they will not change any more."""
        if self.live:
            self._redraw([*self._table(), "", *self._events(7), "", self._status(act)])
            return
        self._tell_new_rules()
        if last or self.elapsed >= self._next:
            self._next = self.elapsed + _EVERY
            click.echo(self._status(act))

    def _redraw(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        text = "".join(f"{line}\x1b[K\n" for line in lines)
        # One write: a terminal shows no half of it.
        click.echo(f"{up}{text}", nl=False)
        self._drawn = len(lines)

    def _status(self, act: str) -> str:
        if self.live:
            return self._style(f"{self.elapsed:5.1f} s  {act}", bold=True)
        counts = ", ".join(
            f"{len(self._ledger.in_state(*states))} {what}" for what, states in _COLUMNS
        )
        return f"{self.elapsed:5.1f} s  {act}: {counts}"

    # The table

    def _table(self) -> list[str]:
        head = f"{'service':<10} {'what is wrong with it':<32}"
        head += "".join(f"{what:>9}" for what, _ in _COLUMNS)
        rows = [self._style(head, underline=True)]
        by_service = self._ledger.by_service()
        for service in SERVICES:
            counts = by_service.get(service.name, Counter())
            rows.append(f"{service.name:<10} {service.trouble:<32}" + self._numbers(counts))
        total = sum(by_service.values(), Counter[State]())
        rows.append(self._style(f"{'all':<43}", bold=True) + self._numbers(total))
        return rows

    def _numbers(self, counts: Counter[State]) -> str:
        cells = []
        for _, states in _COLUMNS:
            number = sum(counts[state] for state in states)
            colour = _COLOURS.get(states[0]) if number else None
            cells.append(self._style(f"{number or '.':>9}", fg=colour))
        return "".join(cells)

    # Events

    def _events(self, most: int) -> list[str]:
        lines = [self._line(event) for event in list(self._ledger.recent)[-most:]]
        return lines + [""] * (most - len(lines))

    def _line(self, event: Event) -> str:
        times = f"{event.attempt} attempt{'s'[: event.attempt > 1]}"
        if event.state is State.DONE:
            what = f"succeeded after {times}"
        elif event.delay is not None:
            what = f"attempt {event.attempt + 1} in {event.delay:.2f} s"
        else:
            what = f"dead letter after {times}"
        found = f"{cut(event.rule, 24):<24} {event.kind:<12} " if event.rule else ""
        return f"{event.task:<12} {found}" + self._style(what, fg=_COLOURS[event.state])

    def _tell_new_rules(self) -> None:
        """One line for the first failure of each kind, so that a log stays short."""
        while self._ledger.fresh:
            event = self._ledger.fresh.popleft()
            sign = f"{event.rule} {event.state}"
            if event.state is not State.DONE and sign not in self._seen:
                self._seen.add(sign)
                click.echo(f"         {self._line(event).rstrip()}: {event.hint}")

    def _style(self, text: str, **style: object) -> str:
        return click.style(text, **style) if self._coloured else text  # type: ignore[arg-type]


_COLUMNS = (
    ("to do", (State.SENT, State.RUNNING)),
    ("retrying", (State.RETRYING,)),
    ("dead", (State.DEAD,)),
    ("done", (State.DONE,)),
)
