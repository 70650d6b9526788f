"""RabbitMQ: where a retry waits until it is due.

Level *n* is a queue that keeps each message for 2 ** n seconds. The bits of a delay, which its
routing key begins with, say which levels a message passes on its way down; after the last one it
comes to :data:`~celery_resilience.messages.envelope.DUE`, and from there into its queue, or if that
has gone, through :data:`UNROUTABLE` into the dead-letter queue that its key names. If that has gone
as well, it comes into :data:`~celery_resilience.messages.headers.ASTRAY`: a level that can't get
rid of a few messages stops, and with it the retries of all other queues.
"""

from __future__ import annotations

import logging
import math
import re
from hashlib import sha256
from typing import Any

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed, ResourceLocked

from celery_resilience.brokers.base import Unroutable
from celery_resilience.brokers.rabbitmq import queues
from celery_resilience.errors import BrokerError
from celery_resilience.messages.headers import ASTRAY, DELAY, DUE
from celery_resilience.policy.terms import LONGEST_DELAY

__all__ = [
    "LEVELS",
    "QUORUM",
    "UNROUTABLE",
    "USUAL",
    "Delay",
    "Refused",
    "absent",
    "forget",
    "level_name",
    "routing_key",
    "waiting_levels",
    "warn_once",
    "word",
]

logger = logging.getLogger("celery_resilience")

#: What no queue has taken any more goes here.
UNROUTABLE = "celery_resilience.unroutable"
#: As many as the longest delay has bits.
LEVELS = math.ceil(LONGEST_DELAY).bit_length()
#: Those that a worker makes when it starts: enough for delays of ten minutes. The higher ones are
#: made when they are needed. RabbitMQ 3.10 may never again elect a leader for a quorum queue that
#: is younger than half a second when its only node is killed.
USUAL = 10
#: A quorum queue gives higher priorities the precedence, and one that is not due yet would be in
#: the way of others that are: so each has levels of its own, all above this one the same.
_HIGHEST = 10

QUORUM = {
    "x-queue-type": "quorum",
    # Both are needed: what expires stays here until the next queue has confirmed it.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
_CLASSIC = {"x-queue-type": "classic"}

#: What means something to a topic exchange, and the sign that takes its place.
_SPECIAL = re.compile(r"[%.*#]")
#: An AMQP routing key is at most 255 bytes: the bits, and two words.
_LONGEST_WORD = (255 - 2 * LEVELS - 1) // 2


class Refused(BrokerError):
    """RabbitMQ does not let retries of this queue wait there."""

    __module__ = "celery_resilience.brokers.delay"  # stored errors name it


def word(queue: str) -> str:
    """The one word of a routing key that stands for *queue* and no other."""
    encoded = _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", queue)
    if len(encoded.encode()) > _LONGEST_WORD:
        return "%-" + sha256(queue.encode()).hexdigest()
    return encoded


def routing_key(seconds: int, queue: str, dead_letter_queue: str) -> str:
    """The way through the levels that takes *seconds*, and where it ends."""
    if not 0 < seconds < 2**LEVELS:
        raise ValueError(f"a delay of {seconds} s does not fit into {LEVELS} levels")
    return ".".join([*f"{seconds:0{LEVELS}b}", word(queue), word(dead_letter_queue)])


def level_name(level: int, priority: object = None) -> str:
    """The name of a level's queue, and of the exchange that leads into or past it."""
    own = _own_levels(priority)
    return f"{DELAY}p{own}.{level}" if own else f"{DELAY}{level}"


class Delay:
    """Makes, and makes again, what retries of a worker's queues need for their wait."""

    def __init__(self, queue_type: str = "classic") -> None:
        self._queue_type = queue_type
        self._refused: set[str] = set()

    def takes(self, queue: str) -> bool:
        """Whether retries of *queue* may wait here, as far as is known."""
        return queue not in self._refused

    def prepare(
        self,
        connection: Any,
        known: set[str],
        queue: str,
        dead_letter_queue: str,
        levels: int,
        priority: object = None,
    ) -> None:
        """Make what is missing for a retry of *queue* that passes the first *levels*.

        *known* are names that need no look; what is made is added. Raises Unroutable if there is
        no such queue, Refused if RabbitMQ won't have any of it.
        """
        try:
            if DUE not in known:
                _make_exchanges(connection)
                known.add(DUE)
            for level in range(levels):
                name = level_name(level, priority)
                if name not in known:
                    _make_level(connection, level, priority)
                    known.add(name)
            if f"{DUE} {queue}" not in known:
                _bind(connection, queue)
                known.add(f"{DUE} {queue}")
            if f"{UNROUTABLE} {dead_letter_queue}" not in known:
                ending = "*." * (LEVELS + 1) + word(dead_letter_queue)
                with connection.channel() as channel:
                    channel.queue_bind(dead_letter_queue, UNROUTABLE, ending)
                _make_last_way_out(connection, dead_letter_queue, ending, self._queue_type)
                known.add(f"{UNROUTABLE} {dead_letter_queue}")
        except NotFound:  # it was deleted a moment ago
            known.discard(dead_letter_queue)
            raise
        except (AccessRefused, PreconditionFailed, ResourceLocked) as exc:
            self._refused.add(queue)
            warn_once(
                f"retries of {queue} can't wait in RabbitMQ: workers hold them, unacknowledged, "
                "until they are due",
                exc,
            )
            raise Refused(str(exc)) from exc


def forget(known: set[str]) -> None:
    """Let all that :meth:`Delay.prepare` has declared be checked again."""
    known -= {name for name in known if name.startswith("celery_resilience.")}


def waiting_levels(connection: Any) -> list[tuple[float, int]]:
    """Each level that is there: its seconds, and how many messages wait in it."""
    found: dict[int, int] = {}
    for priority in range(_HIGHEST + 1):
        for level in range(LEVELS):  # lower ones are made first: few have levels of their own
            waiting = queues.size(connection, level_name(level, priority))
            if waiting is not None:
                found[level] = found.get(level, 0) + waiting
            elif priority:
                break
    return [(float(2**level), found[level]) for level in sorted(found)]


def absent(connection: Any) -> list[str]:
    """The exchanges and queues that scheduled retries need, and that are not there.

    None of them where no retry has ever waited. RabbitMQ does not tell its bindings.
    """
    made = []
    for priority in range(_HIGHEST + 1):
        lowest = level_name(0, priority)  # few have levels of their own
        if not priority or queues.size(connection, lowest) is not None:
            made += [level_name(level, priority) for level in range(LEVELS)]
    exchanges = {name for name in (DUE, UNROUTABLE, *made) if _is_exchange(connection, name)}
    levels = {name for name in made if queues.size(connection, name) is not None}
    if not exchanges and not levels:
        return []
    needed: set[str] = {DUE, UNROUTABLE}
    for priority in range(_HIGHEST + 1):
        own = [level_name(level, priority) for level in range(LEVELS)]
        highest = max((n for n, name in enumerate(own) if name in exchanges | levels), default=-1)
        needed.update(own[: highest + 1])
    lost = [f"the exchange {name}" for name in needed - exchanges]
    return sorted(lost + [f"the queue {name}" for name in needed - levels - {DUE, UNROUTABLE}])


def _is_exchange(connection: Any, name: str) -> bool:
    channel = connection.channel()
    try:
        channel.exchange_declare(name, "topic", passive=True)
    except NotFound:
        queues.leave(channel)
        return False
    channel.close()
    return True


def _own_levels(priority: object) -> int:
    return min(max(priority, 0), _HIGHEST) if isinstance(priority, int) else 0


def _make_exchanges(connection: Any) -> None:
    with connection.channel() as channel:
        channel.exchange_declare(UNROUTABLE, "topic", durable=True, auto_delete=False)
        channel.exchange_declare(
            DUE, "topic", durable=True, auto_delete=False,
            arguments={"alternate-exchange": UNROUTABLE},
        )  # fmt: skip


def _make_last_way_out(connection: Any, letters: str, ending: str, queue_type: str) -> None:
    """Let what is meant for the dead-letter queue *letters* have a place if that has gone.

    UNROUTABLE can't have an alternate exchange of its own: older workers declare it without. So
    what leads to *letters* is, beside its binding, an exchange that has one, and that stays.
    """
    own = f"celery_resilience.letters.{word(letters)}"
    try:
        queues.make(connection, ASTRAY, {"x-queue-type": queue_type})
        with connection.channel() as channel:
            channel.exchange_declare(ASTRAY, "fanout", durable=True, auto_delete=False)
            channel.queue_bind(ASTRAY, ASTRAY)
            channel.exchange_declare(
                own, "fanout", durable=True, auto_delete=False,
                arguments={"alternate-exchange": ASTRAY},
            )  # fmt: skip
            channel.queue_bind(letters, own)
            channel.exchange_bind(own, UNROUTABLE, ending)
    except (AccessRefused, PreconditionFailed, ResourceLocked) as exc:
        warn_once(
            "retries whose queue is deleted together with its dead-letter queue will hold up "
            f"others: this user may not declare {ASTRAY}",
            exc,
        )


def _make_level(connection: Any, level: int, priority: object) -> None:
    name = level_name(level, priority)
    below = level_name(level - 1, priority) if level else DUE
    arguments = {"x-message-ttl": 2**level * 1000, "x-dead-letter-exchange": below}
    try:
        with connection.channel() as channel:
            channel.queue_declare(
                name, durable=True, auto_delete=False, arguments={**arguments, **QUORUM}
            )
    except PreconditionFailed as exc:
        # One that is there with other arguments is taken as it is.
        if queues.size(connection, name) is None:
            warn_once(
                "this RabbitMQ refuses quorum queues with a delay: retries wait in classic ones, "
                "and one that is between two queues when RabbitMQ is killed may be lost",
                exc,
            )
            with connection.channel() as channel:
                channel.queue_declare(
                    name, durable=True, auto_delete=False, arguments={**arguments, **_CLASSIC}
                )
    with connection.channel() as channel:
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
        others = "*." * (LEVELS - 1 - level)
        channel.queue_bind(name, name, f"{others}1.#")
        channel.exchange_bind(below, name, f"{others}0.#")


def _bind(connection: Any, queue: str) -> None:
    try:
        with connection.channel() as channel:
            channel.queue_bind(queue, DUE, "*." * LEVELS + word(queue) + ".*")
    except NotFound as exc:
        raise Unroutable(f"there is no queue {queue}") from exc


#: What has been said once, in this process.
_warned: set[str] = set()


def warn_once(what: str, why: Exception | None = None) -> None:
    """Log *what*, and *why*, the first time in this process."""
    if what not in _warned:
        _warned.add(what)
        logger.warning("%s%s", what, f" ({why})" if why else "")
