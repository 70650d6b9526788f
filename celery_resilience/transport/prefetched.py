"""Messages between the broker and their consumer: taken and held already, not delivered yet."""

from __future__ import annotations

from typing import Any, NamedTuple

from kombu.transport import redis as _redis
from kombu.transport import virtual as _virtual
from kombu.utils.json import loads

from celery_resilience.brokers.redis.lease_qos import LeaseQoS, list_of
from celery_resilience.brokers.redis.leases import Left

__all__ = ["Message", "Prefetched", "QoS", "Undecodable"]

# The stubs miss half of it.
virtual: Any = _virtual
_kombu: Any = _redis.QoS


class Undecodable(ValueError):
    """What was taken from a queue is no message."""


class Prefetched(NamedTuple):
    """One of them."""

    tag: str
    queue: str
    payload: bytes
    held: bool
    #: The number of the take, where a worker holds it.
    number: int = 0

    def decoded(self) -> Any:
        """The payload as kombu's virtual transports pass it on, with its fresh tag."""
        try:
            message = loads(self.payload)
            message["properties"]["delivery_tag"] = self.tag
        except Exception as exc:
            raise Undecodable(f"{type(exc).__name__}: {exc}") from exc
        return message


class Message(virtual.Message):  # type: ignore[misc]
    """A message; Undecodable says whose fault it is that there is none."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception as exc:
            raise Undecodable(f"{type(exc).__name__}: {exc}") from exc


class QoS(LeaseQoS):
    """Holds for the owner of the channel's lease; without one for all, as kombu does.

    What is acknowledged is sent with the next fetch, where that follows at once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.popped = {}
        self._over: Any = self._dirty
        self._quick_ack: Any = self._finished  # kombu calls it with whatever is over

    def _finished(self, delivery_tag: str) -> None:
        self._over.add(delivery_tag)
        if self.channel.slots is not None:
            self.channel.slots.pace.finished(delivery_tag)

    def append(self, message: Any, delivery_tag: str) -> None:
        if self.channel.lease_owner is not None or delivery_tag in self.popped:
            super().append(message, delivery_tag)
        else:
            _kombu.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self.channel.ack_soon(delivery_tag):
            virtual.QoS.ack(self, delivery_tag)
        elif self.channel.lease_owner is not None:
            super().ack(delivery_tag)
        else:
            _kombu.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self.channel.lease_owner is not None:
            super().reject(delivery_tag, requeue=requeue)
        else:
            _kombu.reject(self, delivery_tag, requeue=requeue)

    def restore_unacked(self, client: Any = None) -> None:
        if self.channel.lease_owner is not None:
            super().restore_unacked(client)
        else:
            _kombu.restore_unacked(self, client)

    def requeue(self, taken: Prefetched) -> None:
        """Put what was taken and not delivered where it was."""
        if not taken.held:
            with self.channel.conn_or_acquire() as client:
                client.rpush(self.channel._q_for_pri(taken.queue, 0), taken.payload)
        elif self.channel.lease_owner is not None:
            leases, owner = self._leases(), self.channel.lease_owner
            if not leases.requeue(owner.id, [taken.tag]):
                leases.write_again(owner.id, {taken.tag: self._undelivered(taken)})
        else:
            self.restore_by_tag(taken.tag)

    def _undelivered(self, taken: Prefetched) -> Left:
        try:
            place = list_of(self.channel, taken.decoded(), taken.queue)
        except Exception:  # it is no message
            place = self.channel._q_for_pri(taken.queue, 0)
        return Left(taken.number, f"{place}\n".encode() + taken.payload)
