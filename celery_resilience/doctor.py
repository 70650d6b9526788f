"""What is wrong around an app's retries and dead letters, and the command that mends it.

A list of small checks; each looks at what :class:`Ward` has been told and yields what it finds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from celery_resilience.brokers.reach import TIMEOUT
from celery_resilience.brokers.within import within
from celery_resilience.deadletters import DeadLetters
from celery_resilience.filters import Filters
from celery_resilience.retries import NotListed, Retries

__all__ = ["CHECKS", "Finding", "Report", "Ward", "examine"]

logger = logging.getLogger("celery_resilience")

#: What a living worker of ours would have done so long ago, nobody does, in seconds.
_OVERDUE = 30.0
#: How long workers are given to answer, in seconds.
_PATIENCE = 1.5


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    #: The check that has found it.
    check: str
    what: str
    #: What it leads to.
    why: str
    #: The command or setting that mends it.
    mend: str


@dataclass(frozen=True)
class Report:
    """What an examination has come to."""

    findings: tuple[Finding, ...] = ()
    #: What could not be known, and why.
    unknown: tuple[str, ...] = ()


@dataclass
class Ward:
    """What the checks look at: asked once, when the first of them wants to know."""

    app: Any
    #: How the app is named on a command line: ``celery -A shop``.
    command: str = "celery"
    #: How long an answer of the broker may take, in seconds.
    timeout: float = TIMEOUT
    unknown: list[str] = field(default_factory=list)

    @cached_property
    def retries(self) -> Retries:
        """The waiting retries."""
        return Retries(self.app, self.timeout)

    @cached_property
    def waiting(self) -> Mapping[str, int] | None:
        """How many retries wait for each queue that any waits for; None: nobody can say."""
        try:
            counts = self.retries.count()
        except NotListed as exc:
            self.unknown.append(f"which retries wait: {exc}")
            return None
        return {queue: number for queue, number in counts.items() if number}

    @cached_property
    def dead_letter_queues(self) -> tuple[str, ...]:
        """Every dead-letter queue of the app."""
        return DeadLetters(self.app).queues

    @cached_property
    def consumed(self) -> Mapping[str, tuple[str, ...]] | None:
        """The queues that workers say they consume, each with their names; None: none answered."""
        try:
            ask = self.app.control.inspect(timeout=_PATIENCE).active_queues
            answers = within(self.timeout, ask, "the broker")
        except Exception as exc:  # a transport without remote control says so in its own way
            logger.debug("workers can't be asked", exc_info=True)
            self.unknown.append(f"what workers consume: they can't be asked ({exc})")
            return None
        if not answers:
            self.unknown.append(f"what workers consume: none answered within {_PATIENCE:g} s")
            return None
        found: dict[str, tuple[str, ...]] = {}
        for worker, queues in sorted(answers.items()):
            for queue in queues or ():
                name = str(queue.get("name"))
                found[name] = (*found.get(name, ()), worker)
        return found


Check = Callable[[Ward], Iterator[Finding]]


def examine(app: Any, command: str = "celery", timeout: float = TIMEOUT) -> Report:
    """Carry out every check on *app*; raises Unreachable where its broker can't be reached, and
    NoAnswer where it does not answer for *timeout* seconds."""
    ward = Ward(app, command, timeout)
    with ward.retries:
        findings = tuple(finding for check in CHECKS for finding in check(ward))
    return Report(findings, tuple(ward.unknown))


def unconsumed(ward: Ward) -> Iterator[Finding]:
    """Retries that wait for a queue which no living worker consumes."""
    if not ward.waiting or ward.consumed is None:
        return
    for queue, number in ward.waiting.items():
        if queue not in ward.consumed:
            yield Finding(
                "unconsumed",
                f"{_retries(number)} for {queue}, which no worker consumes",
                "they are moved into that queue when they are due, and lie there",
                f"{ward.command} worker -Q {queue}; or, if it has gone for good: "
                f"{ward.command} retries bury --queue {queue}",
            )


def overdue(ward: Ward) -> Iterator[Finding]:
    """Retries that are due and not moved."""
    if not ward.waiting:
        return
    late: dict[str, float] = {}
    for queue in ward.waiting:
        for first in ward.retries.list(1, Filters(queue=queue)):  # the one that is due first
            if first.left < -_OVERDUE:
                late[queue] = -first.left
    if not late:
        return
    alive = ward.retries.workers()
    queues = ", ".join(sorted(late))
    if alive:
        yield Finding(
            "overdue",
            f"retries for {queues} have been due for up to {max(late.values()):.0f} s",
            f"{alive} of our workers are alive, but do not move them",
            "look into their logs for 'due retries can't be moved'; something that is no list "
            "may have the queue's name",
        )
        return
    yield Finding(
        "overdue",
        f"retries for {queues} have been due for up to {max(late.values()):.0f} s, and no worker "
        "of ours is alive",
        "only workers that load celery_resilience move them",
        f"start one, on whatever queue; or, after a rollback to stock workers: {ward.command} "
        "retries release --all",
    )


def held_by_the_dead(ward: Ward) -> Iterator[Finding]:
    """Messages that dead workers hold, which a living one of ours would have given back."""
    if ward.waiting is None:
        return
    orphans = ward.retries.orphans(over=_OVERDUE)
    if orphans:
        yield Finding(
            "held_by_the_dead",
            f"{sum(orphans.values()):,} messages are held by {len(orphans)} of our workers that "
            "have died",
            "a living worker of ours would have given them back within seconds",
            f"start a worker of ours; or: {ward.command} retries release --all",
        )


def letters_are_executed(ward: Ward) -> Iterator[Finding]:
    """A dead-letter queue that somebody consumes."""
    for queue in ward.dead_letter_queues:
        if ward.consumed and queue in ward.consumed:
            yield Finding(
                "letters_are_executed",
                f"{queue}, a dead-letter queue, is consumed by {', '.join(ward.consumed[queue])}",
                "a stock worker executes dead letters, which are gone then",
                f"take {queue} out of its -Q and out of task_queues",
            )


CHECKS: tuple[Check, ...] = (unconsumed, overdue, held_by_the_dead, letters_are_executed)


def _retries(number: int) -> str:
    return f"{number:,} retr{'y waits' if number == 1 else 'ies wait'}"
