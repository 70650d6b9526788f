"""One scheduled retry, and the result of changing it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from celery_resilience.brokers.base import Broker, ListsScheduled
from celery_resilience.brokers.plain import PlainBroker
from celery_resilience.brokers.redis.scheduled import ScheduledMessage
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.policy.decision import Reason

__all__ = ["Changed", "Result", "ScheduledRetry", "why_unlisted"]


class Result(str, Enum):
    """What became of one scheduled retry."""

    RUN = "run"  #: it is in its queue, to be run now
    BURIED = "buried"  #: it is a dead letter
    RESCHEDULED = "rescheduled"  #: it is due at another moment
    RELEASED = (
        "released"  #: it is in its queue; the worker that receives it holds it until it is due
    )
    DROPPED = "dropped"  #: it is gone
    SKIPPED = "skipped"  #: nothing was done: it is no longer scheduled
    FAILED = "failed"  #: it could not be changed, and is scheduled as before

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class ScheduledRetry:
    """A retry that waits in the broker."""

    #: The dead letter that it would be if it were buried now: its message and its attempts.
    letter: DeadLetter
    #: When it is due, by the broker's clock, in seconds since the epoch.
    due: float
    #: How many seconds were left until then when it was read; below 0: it is overdue.
    left: float

    @classmethod
    def of(cls, found: ScheduledMessage, now: float, app_version: str = "") -> ScheduledRetry:
        """The retry that was *found* when the broker's clock said *now*."""
        history = History.loads(found.envelope.headers.get(HEADER))
        last = history.attempts[-1] if history.attempts else None
        letter = DeadLetter.write(
            Reason.MANUAL,
            found.envelope,
            history=history,
            error=ErrorRecord(last.error, last.message, frame=last.frame)
            if last
            else ErrorRecord(),
            kind=last.kind if last else "",
            verdict_rule=last.rule if last else "",
            rule="buried by an operator",
            app_version=app_version,
        )
        return cls(letter, found.due, found.due - now)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.letter.task

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.letter.task_id

    def groups(self) -> tuple[str, str]:
        """The group and the fingerprint of its last error."""
        return self.letter.group, self.letter.fingerprint

    @property
    def queue(self) -> str:
        """The queue that it belongs to."""
        return self.letter.envelope.queue

    @property
    def last(self) -> Attempt | None:
        """The attempt that failed last."""
        return self.letter.history.attempts[-1] if self.letter.history.attempts else None

    @property
    def failed_at(self) -> float:
        """When the last attempt failed, by its worker's clock."""
        return self.last.at + self.last.ran if self.last else 0.0

    def released(self, found: ScheduledMessage, accepted: Collection[str]) -> Envelope:
        """Its message for plain Celery: with the moment at which it is due as its ``eta``.

        Raises ValueError, with the reason, where its body has to be opened for that and can't be,
        or is of a type that workers don't accept.
        """
        envelope = found.envelope
        if self.left <= 0:
            return envelope
        # Protocol 1 keeps the eta in the body.
        if envelope.protocol == 1 and envelope.content_type not in accepted:
            raise ValueError(
                f"accept_content does not let us open its body ({envelope.content_type})"
            )
        try:
            return envelope.due(found.due)
        except Exception as exc:
            raise ValueError(f"its body can't be opened ({type(exc).__name__}: {exc})") from exc

    def is_younger_than(self, moment: float) -> bool:
        """Whether it was scheduled after *moment* (by the broker's clock).

        Its worker's clock may be wrong, and its due time may have been changed by hand: both have
        to say so.
        """
        last = self.last
        if last is None or last.delay is None:
            return False
        return self.failed_at > moment and self.due - last.delay > moment


@dataclass(frozen=True)
class Changed:
    """One scheduled retry, and what became of it."""

    retry: ScheduledRetry
    result: Result
    #: The queue that it was put into; empty if it was not.
    to: str = ""
    #: When it is due now; None if it is no longer scheduled.
    due: float | None = None
    #: Why it was skipped or failed; empty otherwise.
    why: str = ""

    @classmethod
    def gone(cls, retry: ScheduledRetry) -> Changed:
        """What is said of one that was not there any more."""
        return cls(retry, Result.SKIPPED, why="no longer scheduled")


def why_unlisted(broker: Broker) -> str | None:
    """Why *broker* cannot list scheduled retries; None where it can."""
    if isinstance(broker, ListsScheduled):
        return None
    if not isinstance(broker, PlainBroker):
        return "RabbitMQ delays each message on its own: retries cannot be listed or moved"
    return "on this broker a retry waits in a worker's memory: it cannot be listed or moved"
