"""One Protocol for what is done to messages in a broker, and who implements it.

Everything that settles, waits, is buried or is replayed is the same move: put the copy where it
belongs, *then* let the original go. ``redis`` does both in one script, ``amqp`` waits for the
broker's confirm, ``plain`` publishes and then acknowledges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = [
    "LONGEST_NAME",
    "Broker",
    "BrokerOptions",
    "Delivery",
    "Done",
    "Figures",
    "Found",
    "NotOurs",
    "TooLarge",
    "Unroutable",
]

#: How many bytes AMQP has for the name of a queue.
LONGEST_NAME = 255

#: Called once when a move is over: with None, or with what went wrong.
Done = Callable[["BaseException | None"], None]


class NotOurs(BrokerError):
    """The original is no longer this worker's: nothing was written."""

    __module__ = "celery_resilience.brokers"  # stored errors name it


class Unroutable(BrokerError):
    """The queue that a copy was meant for does not exist."""

    __module__ = "celery_resilience.brokers"  # stored errors name it


class TooLarge(BrokerError):
    """The broker takes no message whose headers are as large as a copy's."""

    __module__ = "celery_resilience.brokers"  # stored errors name it


@dataclass(frozen=True)
class BrokerOptions:
    """What a worker's settings say about its broker."""

    #: The queue that dead letters are routed to; ``{queue}`` stands for the queue that the
    #: message came from.
    dead_letter_queue: str = "dead_letter"
    #: Queue arguments for declaring the dead-letter queue on RabbitMQ, such as
    #: ``{"x-queue-type": "quorum"}``, which is the default where the app's own queues are of that
    #: type. An existing queue is taken as it is.
    dead_letter_queue_arguments: Mapping[str, Any] = field(default_factory=dict)
    #: Where retries wait: ``"auto"``: in the broker, where it can hold them; ``"worker"``: as
    #: Celery's countdown, held by a worker.
    hold_retries: str = "auto"

    def queue_for(self, queue: str, *choices: str | None) -> str:
        """Where letters of messages from *queue* go: the first of *choices* that is given
        (rule, then task), else the setting; ``{queue}`` is filled in."""
        chosen = next((c for c in choices if c is not None), self.dead_letter_queue)
        return chosen.replace("{queue}", queue)


@dataclass(frozen=True)
class Delivery:
    """A message that this worker was given and has not acknowledged yet."""

    #: kombu's message: it knows its channel and its delivery tag.
    message: Any
    envelope: Envelope
    #: Acknowledges it, in the way and the thread that the worker's loop wants.
    ack: Callable[[], None]
    #: It was acknowledged before its body ran: there is nothing left to acknowledge.
    acked_early: bool = False
    #: Its queue is consumed without acknowledgements: the broker has forgotten it at once.
    no_ack: bool = False
    #: A broker that loses the connection may not deliver it again.
    volatile: bool = False
    #: ``task[id]``, for the log.
    subject: str = "a message"
    #: The worker's node name: ``celery@host``.
    worker: str = ""
    #: The dead-letter queue that its task names.
    task_queue: str | None = None


@dataclass(frozen=True)
class Found:
    """A message that was looked at in its queue, where it still is."""

    envelope: Envelope
    #: What the broker needs to find it again.
    key: Any


@dataclass(frozen=True)
class Figures:
    """What a broker says of a queue."""

    #: The messages that lie there for everybody.
    messages: int
    #: Why there may be more of them; empty where these are all.
    unknown: str = ""


class Broker(Protocol):
    """What celery_resilience needs of a broker; one instance serves one worker or one command."""

    def hold(self, delivery: Delivery, copy: Envelope, delay: float, done: Done) -> None:
        """Put *copy* where it waits *delay* seconds for its next attempt; let the original go."""

    def bury(
        self, delivery: Delivery, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        """Put *letter* into the dead-letter *queue*, made if need be; let the original go."""

    def flush(self, timeout: float) -> None:
        """Wait, *timeout* seconds at most, until every move that was begun is over."""

    def count(self, queue: str) -> int:
        """How many messages lie in *queue*; 0 if there is no such queue."""

    def figures(self, queue: str) -> Figures:
        """What the broker itself says of *queue*, asked now."""

    def look(self, queue: str, limit: int | None = None) -> Iterator[Found]:
        """The first *limit* messages of *queue*, the oldest first; all of them stay there."""

    def release(self, found: Found, copy: Envelope, queue: str) -> None:
        """Put *copy* into *queue*, then remove what was *found*.

        Raises NotOurs if somebody else has removed it, Unroutable if there is no such queue.
        """

    def remove(self, found: Found) -> None:
        """Remove what was *found*, for good. Raises NotOurs if somebody else has."""

    def close(self) -> None:
        """Give back what this broker holds: connections, and messages it was looking at."""
