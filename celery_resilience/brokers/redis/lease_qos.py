"""kombu's bookkeeping of what was delivered, for a channel that holds it for one worker."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from kombu.transport import redis as _redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from celery_resilience.brokers.redis import leases
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases, Left, plain_client
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.messages.headers import QUEUE

__all__ = ["LeaseQoS", "list_of", "take_over"]


class LeaseQoS(_redis.QoS):
    """kombu's QoS, which holds messages in the hash of its channel's ``lease_owner``."""

    channel: Any
    _delivered: Any
    #: Tags of messages that the script which fetched them has recorded already, and its number.
    popped: dict[str, int]
    _keep: tuple[Any, Any] = (None, None)

    def append(self, message: Any, delivery_tag: str) -> None:
        number = self.popped.pop(delivery_tag, None)
        if number is None:
            number = self._write_down(delivery_tag, self._value_of(message))
        message.take = number  # a message that has none is held nowhere
        virtual.QoS.append(self, message, delivery_tag)

    def _value_of(self, message: Any) -> str:
        raw = dict(message._raw)
        place = list_of(self.channel, raw, raw.pop(QUEUE, None))
        return f"{place}\n{dumps(raw)}"

    def _write_down(self, tag: str, value: str) -> int:
        channel, owner = self.channel, self.channel.lease_owner
        pool, script = self._keep
        if pool is not channel.pool:
            script = plain_client(channel).register_script(lua("record_delivery"))
            self._keep = channel.pool, script
        prefix = channel.global_keyprefix or ""
        keys = [prefix + owner.key, f"{prefix}{KEYS}takes", f"{prefix}{KEYS}workers"]
        number = int(script(keys=keys, args=[tag, value, owner.id, owner.last_take, leases.LEASE]))
        owner.taken(number)
        return number

    def ack(self, delivery_tag: str) -> None:
        try:
            self.channel.lease_owner.left.pop(delivery_tag, None)
            with self.channel.conn_or_acquire() as client:
                client.hdel(self.channel.lease_owner.key, delivery_tag)
        except (
            AttributeError,
            OSError,
            self.channel.ResponseError,
            *self.channel.connection_errors,
        ):
            # The connection has gone, or writing is refused for now, and the task is done: it must
            # not be run again.
            self.channel.lease_owner.unsent.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            self.ack(delivery_tag)
            return
        self._requeue([delivery_tag])
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Called when the channel closes. The owner of its lease outlives it: what runs goes on;
        the next connection, or the worker at its end, requeues what does not."""
        self.channel.lease_owner.left.update(self.left())
        self._delivered.clear()

    def left(self) -> dict[str, Left]:
        """What was delivered, and neither acknowledged nor settled yet."""
        done: Any = self._dirty
        delivered = [(tag, each) for tag, each in list(self._delivered.items()) if tag not in done]
        return {
            tag: Left(message.take, self._value_of(message).encode())
            for tag, message in delivered
            if hasattr(message, "take")
        }

    def _requeue(self, tags: Collection[str]) -> None:
        leases, owner = self._leases(), self.channel.lease_owner
        if leases.requeue(owner.id, tags) < len(tags):
            left = {tag: left for tag, left in self.left().items() if tag in tags}
            leases.write_again(owner.id, left)

    def _leases(self) -> Leases:
        return Leases(plain_client(self.channel), self.channel.global_keyprefix or "")


def take_over(channel: Any, owner: LeaseOwner) -> bool:
    """Let *channel*, from which nothing was read yet, hold its messages for *owner*.

    False, and nothing is changed, where kombu's acknowledgements are not emulated.
    """
    qos = channel.qos
    if not isinstance(qos, _redis.QoS):
        return False
    channel.lease_owner = owner
    if not isinstance(qos, LeaseQoS):
        # Celery may have changed methods of this very object (worker_disable_prefetch).
        qos.__class__ = LeaseQoS
    qos.__dict__.setdefault("popped", {})
    kind: Any = type(channel)
    channel.__class__ = _reading_every_list(kind)
    Leases(plain_client(channel), channel.global_keyprefix or "").ack_unsent(owner)
    return True


@cache
def _reading_every_list(kind: type) -> type:
    """A *kind* of channel that also reads the lists of its queues on fanout exchanges.

    Only what requeues a message into the queue that it came from writes them: a retry, a
    replay, and what is requeued.
    """

    def active_queues(channel: Any) -> list[str]:
        return list(dict.fromkeys(channel._active_queues))

    return type(kind.__name__, (kind,), {"active_queues": property(active_queues)})


def list_of(channel: Any, raw: dict[str, Any], queue: str | None) -> str:
    if queue is None:
        info = (raw.get("properties") or {}).get("delivery_info") or {}
        (queue,) = list(channel._lookup(info.get("exchange"), info.get("routing_key")))[:1]
    step = channel._get_message_priority({"properties": raw.get("properties")}, reverse=False)
    return str(channel._q_for_pri(queue, step))
