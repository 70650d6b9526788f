"""A letter and where it lies, and how many lie there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from celery_resilience.brokers.base import Broker, RecordsLetterQueues
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.identity import LENGTH
from celery_resilience.operate.ids import Names
from celery_resilience.settings import Settings

__all__ = ["Filed", "Tally", "named", "registered"]


@dataclass(frozen=True)
class Filed:
    """A letter, and the dead-letter queue that it lies in."""

    letter: DeadLetter
    queue: str
    #: Which of several equal letters it is, counted from 1.
    number: int = 1

    @property
    def name(self) -> str:
        """What it is called in a list: its id, with ``.2`` for the second of two equal ones."""
        return self.letter.id if self.number == 1 else f"{self.letter.id}.{self.number}"


@dataclass(frozen=True)
class Tally:
    """How many letters lie in a dead-letter queue, by the broker's own figures."""

    queue: str
    number: int
    #: Why there may be more; empty where these are all.
    unknown: str = ""


def named(letter: DeadLetter, queue: str, names: Names) -> Filed:
    """*letter*, under a name that no other has of those that *names* knows."""
    name, number = names.name(letter.id, letter.digest, letter.digest[:LENGTH])
    return Filed(letter if name == letter.id else replace(letter, id=name), queue, number)


def registered(broker: Broker) -> set[str]:
    """The queues that letters were ever written to, and the one that is the default."""
    recorded = broker.letter_queues() if isinstance(broker, RecordsLetterQueues) else ()
    return {Settings().dead_letter_queue, *recorded}
