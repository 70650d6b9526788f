"""One Protocol for what is done to messages in a broker, and who implements it.

Everything that settles, waits, is buried or is replayed is the same move: put the copy where it
belongs, *then* ack the original. ``redis`` does both in one script, ``amqp`` waits for the
broker's confirm, ``plain`` publishes and then acknowledges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = [
    "LONGEST_NAME",
    "Broker",
    "BrokerOptions",
    "Browsed",
    "ChecksConnection",
    "CountsDelayed",
    "Delivery",
    "Done",
    "Figures",
    "HangsUp",
    "Leasing",
    "ListsScheduled",
    "NotOurs",
    "Prepares",
    "RecordsLetterQueues",
    "RecordsStarts",
    "RedeliversOnDisconnect",
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
class Browsed:
    """A message that was browsed in its queue, where it still is."""

    envelope: Envelope
    #: What the broker needs to find it again.
    key: Any


@dataclass(frozen=True)
class Figures:
    """What a broker says of a queue."""

    #: The messages that lie there, ready for any consumer.
    messages: int
    #: Why there may be more of them; empty where these are all.
    unknown: str = ""


class Broker(Protocol):
    """What celery_resilience needs of a broker; one instance serves one worker or one command."""

    def schedule(self, delivery: Delivery, copy: Envelope, delay: float, done: Done) -> None:
        """Put *copy* where it waits *delay* seconds for its next attempt; ack the original."""

    def dead_letter(
        self, delivery: Delivery, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        """Put *letter* into the dead-letter *queue*, declared if need be; ack the original."""

    def flush(self, timeout: float) -> None:
        """Wait, *timeout* seconds at most, until every move that was begun is over."""

    def count(self, queue: str) -> int:
        """How many messages lie in *queue*; 0 if there is no such queue."""

    def figures(self, queue: str) -> Figures:
        """What the broker itself says of *queue*, asked now."""

    def browse(self, queue: str) -> Iterator[Browsed]:
        """The messages of *queue*, the oldest first; all of them stay there."""

    def republish(self, found: Browsed, copy: Envelope, queue: str) -> None:
        """Put *copy* into *queue*, then remove what was *found*.

        Raises NotOurs if another process has removed it, Unroutable if there is no such queue.
        """

    def remove(self, found: Browsed) -> None:
        """Remove what was *found*, for good. Raises NotOurs if another process has."""

    def close(self) -> None:
        """Give back what this broker holds: connections, and messages it was looking at."""


# What only some brokers can do: ask for it with ``isinstance``


@runtime_checkable
class Leasing(Protocol):
    """Its messages are a worker's own for as long as that renews its lease."""

    leases: Any

    def lease_owner(self) -> Any:
        """The owner of a worker's leases; it outlives the connection."""

    def consume_for(self, channel: Any, owner: Any) -> bool:
        """Let *channel*, from which nothing was read yet, lease its messages for *owner*."""

    def housekeeper(self, owner: Any) -> Any:
        """Who releases what is due and renews *owner*'s lease, on connections of its own."""


@runtime_checkable
class RecordsStarts(Protocol):
    """It records where a message is held that its body starts, so that a crash is known."""

    def record_start(self, delivery: Delivery, copy: Envelope) -> bool:
        """Write down that *delivery*, as *copy* tells, is started; False: it is not ours."""


@runtime_checkable
class RedeliversOnDisconnect(Protocol):
    """It delivers again what was on a lost connection, though the worker lives and its bodies run:
    only the workers know whether one of them still has it."""

    redelivers_on_disconnect: bool


@runtime_checkable
class ListsScheduled(Protocol):
    """It tells which retries wait in it, and moves any of them."""

    waiting: Any

    def take_scheduled(
        self, ids: Collection[str], wanted: Callable[[Envelope], bool] | None = None
    ) -> Iterator[Any]:
        """Take out the scheduled retries with these task *ids*, and what is *wanted*: of several
        that do so each gets others. For another thread than the worker's."""

    def schedule_again(self, found: Any) -> None:
        """Let what was taken out wait as before; for another thread than the worker's."""


@runtime_checkable
class CountsDelayed(Protocol):
    """It tells how many retries wait in each level of its delay, and not which."""

    def waiting_levels(self) -> list[tuple[float, int]]:
        """Each level: its seconds, and how many retries wait in it."""


@runtime_checkable
class RecordsLetterQueues(Protocol):
    """It knows where letters may lie whatever the settings say."""

    def letter_queues(self) -> set[str]:
        """The names of those queues."""


@runtime_checkable
class Prepares(Protocol):
    """What retries need on their way is made before the first of them."""

    def prepare(self, names: Iterable[str]) -> None:
        """Make what retries of the queues with these *names* will need. Raises nothing."""


@runtime_checkable
class ChecksConnection(Protocol):
    """Its connection of its own has to be looked after."""

    def check(self) -> None:
        """Give up on a connection that no longer answers; called now and then by the loop."""


@runtime_checkable
class HangsUp(Protocol):
    """To close it takes an answer of the broker's."""

    def abandon(self) -> None:
        """Close without a word to the broker, which does not answer."""
