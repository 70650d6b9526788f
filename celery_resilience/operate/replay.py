"""Replaying one dead letter: publish its message again, then remove it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kombu.serialization import prepare_accept_content

from celery_resilience.brokers.base import Broker, Browsed, NotOurs, Unroutable
from celery_resilience.errors import BrokerError
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope

__all__ = ["Replay", "ReplayResult", "Replayed"]

logger = logging.getLogger("celery_resilience")


class ReplayResult(str, Enum):
    """What became of one letter in a replay."""

    PUBLISHED = "published"  #: its message is published and confirmed, the letter is removed
    SKIPPED = "skipped"  #: nothing was done: it is not there any more, or was not meant
    FAILED = "failed"  #: it could not be published; the letter is where it was
    #: What it was called in 0.1.0.
    REPLAYED = PUBLISHED

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Replayed:
    """One letter of a replay, and what became of it."""

    letter: DeadLetter
    #: The dead-letter queue that it lay in.
    queue: str
    #: The queue that its message was meant for.
    to: str
    result: ReplayResult
    #: Why it was skipped or failed, and the way out; empty if it was published.
    why: str = ""


@dataclass(frozen=True)
class Replay:
    """How the letters of one replay are replayed."""

    broker: Broker
    #: The queues that letters lie in: nothing is published there.
    dead_letter_queues: Collection[str]
    #: The content types that the workers open. What they would refuse is not opened here either:
    #: it may be a pickle, and the letter may be about that very refusal.
    accepted: Collection[str]
    #: Where all go; None: each to the queue that it was received from.
    to_queue: str | None
    #: Letters of a later time are left where they are: in seconds since the epoch.
    until: float

    @classmethod
    def of(
        cls, app: Any, broker: Broker, queues: Collection[str], to_queue: str | None, until: float
    ) -> Replay:
        """A replay for *app*, whose dead-letter *queues* are these."""
        accepted = prepare_accept_content(app.conf.accept_content) or ()
        return cls(broker, queues, accepted, to_queue, until)

    def one(self, found: Browsed, letter: DeadLetter, queue: str) -> Replayed:
        """Replay the *letter* that was *found* in *queue*."""
        origin = letter.envelope.queue
        to = self.to_queue or ("" if origin in self.dead_letter_queues else origin)

        def ended(result: ReplayResult, why: str = "") -> Replayed:
            return Replayed(letter, queue, to, result, why)

        if letter.at > self.until:
            return ended(ReplayResult.SKIPPED, "written after this replay started")
        if not to:
            return ended(
                ReplayResult.FAILED,
                "the queue that it came from is unknown: choose one with --to-queue",
            )
        done = letter.history.succeeded
        if done is not None and done.result is None:
            return ended(
                ReplayResult.FAILED,
                "its body has succeeded, but its return value could not be kept: publish the rest "
                "of the chain by hand",
            )
        try:
            self.broker.republish(found, self._message(letter), to)
        except NotOurs:
            return ended(ReplayResult.SKIPPED, "another process has removed it")
        except Unroutable:
            return ended(
                ReplayResult.FAILED,
                f"there is no queue {to}: start a worker on it, or choose another with --to-queue",
            )
        except BrokerError as exc:
            return ended(ReplayResult.FAILED, str(exc))
        return ended(ReplayResult.PUBLISHED)

    def _message(self, letter: DeadLetter) -> Envelope:
        """The message to publish; as it was received where it can't be opened."""
        envelope = letter.envelope
        if envelope.protocol == 2 or envelope.content_type in self.accepted:
            try:
                return letter.replayed()
            except Exception:
                logger.debug("letter %s can't be opened", letter.id, exc_info=True)
        return envelope.with_header(letter.history.replayed(letter.id).dumps())
