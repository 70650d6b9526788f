"""Redis and Valkey, through kombu's own transport: every move is one script.

The lists that messages lie in are kombu's, one per queue and priority step. The client follows
the connection's own settings (Sentinel, TLS, credentials), the keys its ``global_keyprefix``.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual
from kombu.utils.json import dumps

from celery_resilience.brokers.base import BrokerOptions, Browsed, Delivery, Done, Figures, NotOurs
from celery_resilience.brokers.connections import pool_of, use_one_client
from celery_resilience.brokers.ownership import after_script, on_redis
from celery_resilience.brokers.redis.browse import read_page
from celery_resilience.brokers.redis.housekeeping import Housekeeper
from celery_resilience.brokers.redis.lease_qos import take_over
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases, plain_client
from celery_resilience.brokers.redis.rights import refused
from celery_resilience.brokers.redis.scheduled import (
    Original,
    ScheduledMessage,
    ScheduledRetries,
    read,
)
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import compact

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisBroker"]

logger = logging.getLogger("celery_resilience")


class RedisBroker:
    """A :class:`~celery_resilience.brokers.base.Broker` on Redis."""

    def __init__(self, connection: Any, settings: BrokerOptions | None = None) -> None:
        channel = connection.default_channel
        self._pool = pool_of(channel)
        self._client: Redis = plain_client(channel, self._pool, single=True)
        self._channel = channel
        self._settings = settings or BrokerOptions()
        self._prefix: str = channel.global_keyprefix or ""
        #: How many messages this has released from each list.
        self._released: Counter[str] = Counter()
        self._letter_queues = f"{self._prefix}{KEYS}dead_letter_queues"
        self._remembered: set[str] = set()
        self._move_unacked = self._client.register_script(lua("move_unacked"))
        self._republish = self._client.register_script(lua("republish"))
        self._record_start = self._client.register_script(lua("record_start"))
        self.waiting = ScheduledRetries(
            self._client, self._prefix, channel.sep, channel.priority_steps
        )
        self.leases = Leases(self._client, self._prefix)
        self._housekeeper: Housekeeper | None = None
        use_one_client(channel)

    def schedule(self, delivery: Delivery, copy: Envelope, delay: float, done: Done) -> None:
        queue = delivery.envelope.queue
        if delay <= 0 or self._settings.hold_retries == "worker":
            self._move(delivery, copy.due_in(delay), queue, done)
            return
        copy = copy.due(None)  # what the broker holds, no worker holds again
        payload, place = self._payload(copy, queue), self._list(queue, copy)

        def wait(original: Original) -> int:
            answer = self.waiting.schedule(original, payload, place, delay)
            if self._housekeeper is not None:
                self._housekeeper.expect(delay)
            return answer

        self._carry_out(delivery, wait, done)

    def dead_letter(
        self, delivery: Delivery, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        self.remember_letters(queue)
        self._move(delivery, letter, queue, done)

    def _move(self, delivery: Delivery, copy: Envelope, queue: str, done: Done) -> None:
        payload, to = self._payload(copy, queue), self._key(queue, copy)

        def settle(original: Original) -> int:
            keys = [*original.held, to, original.takes, original.written]
            gone = "0" if original.is_there else "1"
            args = [original.tag, payload, gone, original.worker, original.number]
            return int(self._move_unacked(keys=keys, args=args))

        self._carry_out(delivery, settle, done)

    def _carry_out(self, delivery: Delivery, move: Callable[[Original], int], done: Done) -> None:
        whose = on_redis(delivery)
        try:
            answer = move(self._original(delivery, whose.has_original))
        except Exception as exc:
            done(exc)
            return
        if whose.has_original:
            whose = after_script(answer)
            _forget(delivery.message)
        if not whose.is_ours:
            _free(delivery.message)
            done(NotOurs(whose.value))
            return
        if whose.is_unusual:
            logger.warning("%s: %s; its copy is written", delivery.subject, whose.value)
        done(None)

    def _original(self, delivery: Delivery, is_there: bool = True) -> Original:
        """The message *delivery*, as the scripts look for it."""
        channel, message = delivery.message.channel, delivery.message
        owner = getattr(channel, "lease_owner", None)
        held = channel.unacked_key if owner is None else owner.key
        return Original(
            held=(self._prefix + held, self._prefix + channel.unacked_index_key),
            takes=f"{self._prefix}{KEYS}takes",
            tag=message.delivery_tag,
            worker="" if owner is None else owner.id,
            number=getattr(message, "take", ""),
            is_there=is_there,
            written=f"{self._prefix}{KEYS}written:{message.delivery_tag}",
        )

    def flush(self, timeout: float) -> None:
        """Nothing is ever unconfirmed: a script is over when it returns."""

    def count(self, queue: str) -> int:
        pipe = self._client.pipeline(transaction=False)
        for key in self._keys(queue):
            pipe.llen(key)
        return sum(pipe.execute())

    def figures(self, queue: str) -> Figures:
        return Figures(self.count(queue))

    def browse(self, queue: str) -> Iterator[Browsed]:
        for key in self._keys(queue):
            #: Hashes of those that were read: of the messages there may be more than memory holds.
            seen: set[int] = set()
            offset, more = 0, True
            while more:
                offset, page, more = read_page(self._client, key, offset, seen)
                released = self._released[key]
                for payload in page:
                    seen.add(hash(payload))
                    yield Browsed(read(payload, queue), key=(key, payload))
                # What was released meanwhile has moved the rest towards the end.
                offset -= self._released[key] - released

    def republish(self, found: Browsed, copy: Envelope, queue: str) -> None:
        key, payload = found.key
        if not self._republish(
            keys=[key, self._key(queue, copy), f"{self._prefix}{KEYS}none"],
            args=[payload, self._payload(copy, queue)],
        ):
            raise NotOurs("another process has removed it meanwhile")
        self._released[key] += 1

    def remove(self, found: Browsed) -> None:
        key, payload = found.key
        # -1: from the oldest message on.
        if not self._client.lrem(key, -1, payload):
            raise NotOurs("another process has removed it meanwhile")
        self._released[key] += 1

    # Where letters lie

    def remember_letters(self, queue: str) -> None:
        """Write down that letters lie in *queue*, for commands after its setting has changed.

        Raises nothing: a letter does not wait for that.
        """
        if queue not in self._remembered:
            with suppress(Exception):
                self._client.sadd(self._letter_queues, queue)
                self._remembered.add(queue)

    def letter_queues(self) -> set[str]:
        """Every queue that a letter was ever written to."""
        names: Any = self._client.smembers(self._letter_queues)
        return {name.decode("utf-8", "replace") for name in names}

    def record_start(self, delivery: Delivery, copy: Envelope) -> bool:
        """Write down that *delivery*, as *copy* tells, is started; False: it is not ours."""
        if getattr(delivery.message.channel, "lease_owner", None) is None:
            return True  # kombu's hash has no room for that
        if not on_redis(delivery).has_original:
            return True
        original, queue = self._original(delivery), delivery.envelope.queue
        value = f"{self._list(queue, copy)}\n{self._payload(copy, queue)}"
        answer = self._record_start(
            keys=[original.held[0], original.takes],
            args=[original.tag, value, original.worker, original.number],
        )
        ours = after_script(int(answer)).is_ours
        if not ours:
            _forget(delivery.message)
            _free(delivery.message)
        return ours

    # Retries that wait

    def put(self, found: ScheduledMessage, copy: Envelope, queue: str) -> bool:
        """Put *copy* into *queue*, then remove what was *found* waiting; False: it was gone."""
        return self.waiting.put(found, self._payload(copy, queue), self._list(queue, copy))

    def take_scheduled(
        self, ids: Collection[str], wanted: Callable[[Envelope], bool] | None = None
    ) -> Iterator[ScheduledMessage]:
        """Take out the scheduled retries with these task *ids*, and what is *wanted*: of several
        that do so each gets others. For another thread than the worker's."""
        waiting = self._waiting_elsewhere()
        for found in list(waiting.find(ids, wanted)):
            if waiting.remove(found):
                yield found

    def schedule_again(self, found: ScheduledMessage) -> None:
        """Let what was taken out wait as before; for another thread than the worker's."""
        self._waiting_elsewhere().add(found)

    def _waiting_elsewhere(self) -> ScheduledRetries:
        channel, client = self._channel, plain_client(self._channel, self._pool)
        return ScheduledRetries(client, self._prefix, channel.sep, channel.priority_steps)

    # A worker

    def lease_owner(self) -> LeaseOwner:
        """The owner of one worker's lease; it outlives the connection."""
        return LeaseOwner()

    def consume_for(self, channel: Any, owner: LeaseOwner) -> bool:
        """Let *channel*, from which nothing was read yet, hold its messages for *owner*."""
        from redis.exceptions import NoPermissionError

        try:
            self.leases.renew(owner)
            return take_over(channel, owner)
        except NoPermissionError as exc:
            letters = self._settings.dead_letter_queue
            queues = [] if "{" in letters else [letters]
            raise BrokerError(
                f"Redis refuses this user {refused(self._client, self._prefix, queues)}; "
                "docs/security.md lists the rights that are needed"
            ) from exc

    def housekeeper(self, owner: LeaseOwner) -> Housekeeper:
        """Who moves what is due and renews *owner*'s lease, on connections of its own."""
        self._housekeeper = Housekeeper(self._channel, owner)
        return self._housekeeper

    def close(self) -> None:
        """Give back our connections."""
        self._pool.disconnect()

    def _keys(self, queue: str) -> list[str]:
        channel = self._channel
        return [self._prefix + channel._q_for_pri(queue, n) for n in channel.priority_steps]

    def _key(self, queue: str, copy: Envelope) -> str:
        return self._prefix + self._list(queue, copy)

    def _list(self, queue: str, copy: Envelope) -> str:
        channel = self._channel
        priority = channel._get_message_priority({"properties": copy.properties}, reverse=False)
        return str(channel._q_for_pri(queue, priority))

    def _payload(self, copy: Envelope, queue: str) -> str:
        # A fresh tag: the late acknowledgement of an old owner must not delete the new one's.
        return compact(copy.to_wire(str(uuid.uuid4()), queue), dumps)


def _forget(message: Any) -> None:
    """Make the acknowledgement of *message*, which a script has removed from the broker, local: so
    the worker counts what it holds, and the broker does not hear of a tag that is another's."""
    qos, tag = message.channel.qos, message.delivery_tag

    def ack(multiple: bool = False) -> None:
        virtual.QoS.ack(qos, tag)
        message._state = "ACK"

    message.ack = ack


def _free(message: Any) -> None:
    """Free the place of *message* in this worker. It is not ours, nor is it done: it may return."""
    if not message.acknowledged:
        message.ack()
