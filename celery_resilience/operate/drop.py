"""Dropping one dead letter: it is removed for good, on an operator's word."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

from celery_resilience.brokers.base import Broker, Browsed, NotOurs
from celery_resilience.errors import BrokerError
from celery_resilience.messages.dead_letter import DeadLetter

__all__ = ["Drop", "DropResult", "Dropped"]

logger = logging.getLogger("celery_resilience")


class DropResult(str, Enum):
    """What became of one letter that was to be dropped."""

    DROPPED = "dropped"  #: it is gone
    SKIPPED = "skipped"  #: nothing was done: it is not there any more, or was not meant
    FAILED = "failed"  #: it could not be removed; it is where it was

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Dropped:
    """One letter that was to be dropped, and what became of it."""

    letter: DeadLetter
    #: The dead-letter queue that it lay in.
    queue: str
    result: DropResult
    #: Why it was skipped or failed; empty if it was dropped.
    why: str = ""


@dataclass(frozen=True)
class Drop:
    """How letters are dropped."""

    broker: Broker
    #: Letters of a later time are left where they are: in seconds since the epoch.
    until: float
    #: Why, for the log.
    because: str = ""

    def one(self, found: Browsed, letter: DeadLetter, queue: str) -> Dropped:
        """Drop the *letter* that was *found* in *queue*."""
        if letter.at > self.until:
            return Dropped(letter, queue, DropResult.SKIPPED, "written after this command started")
        try:
            self.broker.remove(found)
        except NotOurs:
            return Dropped(letter, queue, DropResult.SKIPPED, "another process has removed it")
        except BrokerError as exc:
            return Dropped(letter, queue, DropResult.FAILED, str(exc))
        logger.info(
            "dropped dead letter %s of %s[%s]%s", letter.id, letter.task, letter.task_id,
            self.because and f": {self.because}",
        )  # fmt: skip
        return Dropped(letter, queue, DropResult.DROPPED)
