"""Problems around an app's tasks, retries and dead letters, and how to fix each.

A list of small checks; each looks at a :class:`Diagnosis` and yields its findings. What could not
be checked is listed: that is not the same as no problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_resilience.brokers.connect import TIMEOUT
from celery_resilience.messages.filters import Filters
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.diagnosis import Check, Diagnosis, Finding, Report
from celery_resilience.operate.doctor_rabbitmq import RABBITMQ_CHECKS
from celery_resilience.operate.doctor_redis import OVERDUE, REDIS_CHECKS
from celery_resilience.task.base import ResilientTask
from celery_resilience.task.coverage import why_uncovered

__all__ = ["Finding", "Report", "examine"]

#: So many names of a list of tasks are printed.
_NAMES = 5


def examine(app: Any, command: str = "celery", timeout: float = TIMEOUT) -> Report:
    """Carry out every check on *app*; raises Unreachable where its broker can't be reached, and
    NoAnswer where it does not answer for *timeout* seconds."""
    with Diagnosis(app, command, timeout) as diagnosis:
        checks = (*_CHECKS, *_CHECKS_OF_BROKERS.get(diagnosis.driver, ()))
        findings = tuple(finding for check in checks for finding in check(diagnosis))
    return Report(findings, tuple(diagnosis.notes), tuple(diagnosis.unchecked))


def letters(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Dead letters that are still there."""
    if diagnosis.driver not in ("redis", "amqp"):
        diagnosis.unchecked.append("the number of dead letters: this broker cannot be inspected")
        return
    with DeadLetters(diagnosis.app, timeout=diagnosis.timeout) as filed:
        tallies = filed.tally()
    counts = {tally.queue: tally.number for tally in tallies if tally.number}
    for tally in tallies:
        if tally.unknown:
            diagnosis.unchecked.append(f"the number of letters in {tally.queue}: {tally.unknown}")
    if counts:
        lie = ", ".join(f"{number:,} in {queue}" for queue, number in counts.items())
        number = sum(counts.values())
        yield Finding(
            "letters",
            f"{number:,} dead letter{' is' if number == 1 else 's are'} open: {lie}",
            "each is a task that failed for good and was neither replayed nor dropped",
            f"{diagnosis.command} dlq ls; fix the cause, then {diagnosis.command} dlq replay",
        )


def unconsumed(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Scheduled retries for a queue that no living worker consumes."""
    if not diagnosis.waiting or diagnosis.consumed is None:
        return
    for queue, number in diagnosis.waiting.items():
        if queue not in diagnosis.consumed:
            yield Finding(
                "unconsumed",
                f"{_retries(number)} for {queue}, which no worker consumes",
                "they are moved into that queue when due, and stay there",
                f"{diagnosis.command} worker -Q {queue}; or, if it has gone for good: "
                f"{diagnosis.command} retries bury --queue {queue}",
            )


def overdue(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Retries that are due and not moved."""
    if not diagnosis.waiting:
        return
    late: dict[str, float] = {}
    for queue in diagnosis.waiting:
        for first in diagnosis.retries.list(1, Filters(queue=queue)):  # the one that is due first
            if first.left < -OVERDUE:
                late[queue] = -first.left
    if not late:
        return
    alive = diagnosis.retries.workers()
    queues = ", ".join(sorted(late))
    if alive:
        yield Finding(
            "overdue",
            f"retries for {queues} have been due for up to {max(late.values()):.0f} s",
            f"{alive} workers with celery_resilience are alive, but do not move them",
            "look into their logs for 'due' and \"can't be moved\"; a key that is not a list may "
            "have the queue's name",
        )
        return
    yield Finding(
        "overdue",
        f"retries for {queues} have been due for up to {max(late.values()):.0f} s, and no worker "
        "with celery_resilience is alive",
        "only workers that load celery_resilience move them",
        f"start one, on any queue; or, after a rollback to stock workers: {diagnosis.command} "
        "retries release --all",
    )


def letters_are_executed(diagnosis: Diagnosis) -> Iterator[Finding]:
    """A dead-letter queue that is consumed."""
    for queue in diagnosis.dead_letter_queues:
        if diagnosis.consumed and queue in diagnosis.consumed:
            yield Finding(
                "letters_are_executed",
                f"{queue}, a dead-letter queue, is consumed by "
                f"{', '.join(diagnosis.consumed[queue])}",
                "a stock worker executes dead letters and loses them",
                f"take {queue} out of its -Q and out of task_queues",
            )


def not_covered(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Tasks whose failures do not come to us."""
    ours = {n: t for n, t in diagnosis.tasks.items() if isinstance(t, ResilientTask)}
    own = [name for name, task in ours.items() if why_uncovered(task)]
    if own:
        yield Finding(
            "own_strategy",
            f"{_named(own)}: tasks with a Strategy of their own, such as those of celery-batches",
            "celery_resilience never sees their failures: no retry, no dead letter",
            "give them Celery's Strategy, or let their body only send other tasks",
        )
    stock = [name for name in diagnosis.tasks if name not in ours]
    if stock:
        diagnosis.notes.append(
            f"{_named(stock)}: stock Celery tasks: failures are handled as stock Celery does. "
            "install(app) before they are defined covers them, unless only= excludes them"
        )
    early = [name for name, task in ours.items() if not task.acks_late]
    if early:
        diagnosis.notes.append(
            f"{_named(early)}: acks_late is False: what is running is lost when its worker dies"
        )


def stock_workers(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Workers that run tasks of the app without us."""
    seen = diagnosis.workers or {}
    stock = [name for name, worker in seen.items() if worker.stock and not worker.ours]
    if stock:
        diagnosis.notes.append(
            f"{', '.join(stock)}: none of their tasks is covered by celery_resilience: failures "
            "are handled as stock Celery does, of every message they take"
        )
    yield from ()


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES:,} more"


def _retries(number: int) -> str:
    return f"{number:,} retr{'y waits' if number == 1 else 'ies wait'}"


_CHECKS: tuple[Check, ...] = (
    letters,
    unconsumed,
    overdue,
    letters_are_executed,
    not_covered,
    stock_workers,
)
#: And those that only one kind of broker needs.
_CHECKS_OF_BROKERS = {"redis": REDIS_CHECKS, "amqp": RABBITMQ_CHECKS}
