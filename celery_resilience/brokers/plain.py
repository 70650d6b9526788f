"""Any other broker of kombu's: publish, then acknowledge.

A death between the two makes a duplicate, never a loss. Nothing can be read without taking
it away, so looking is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from celery_resilience.brokers.base import Browsed, Delivery, Done, Figures
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = ["PlainBroker"]


class PlainBroker:
    """A :class:`~celery_resilience.brokers.base.Broker` on what every virtual transport can do."""

    def __init__(self, connection: Any) -> None:
        self._channel = connection.default_channel
        self._name = connection.transport.driver_name

    def schedule(self, delivery: Delivery, copy: Envelope, delay: float, done: Done) -> None:
        self._move(delivery, copy.due_in(delay), delivery.envelope.queue, done)

    def dead_letter(
        self, delivery: Delivery, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        self._move(delivery, letter, queue, done)

    def _move(self, delivery: Delivery, copy: Envelope, queue: str, done: Done) -> None:
        try:
            self._put(copy, queue)
        except Exception as exc:
            done(exc)
            return
        done(None)

    def flush(self, timeout: float) -> None:
        """Nothing is ever unconfirmed."""

    def count(self, queue: str) -> int:
        return int(self._channel._size(queue)) if self._channel._has_queue(queue) else 0

    def figures(self, queue: str) -> Figures:
        return Figures(self.count(queue))

    def browse(self, queue: str) -> Iterator[Browsed]:
        raise BrokerError(
            f"{self._name} cannot be inspected without taking messages out of it: "
            "inspecting and replaying need Redis or RabbitMQ"
        )

    def republish(self, found: Browsed, copy: Envelope, queue: str) -> None:
        raise BrokerError(f"{self._name}: replaying needs Redis or RabbitMQ")

    def remove(self, found: Browsed) -> None:
        raise BrokerError(f"{self._name}: dropping needs Redis or RabbitMQ")

    def close(self) -> None:
        """The channel is the connection's: it closes with it."""

    def _put(self, copy: Envelope, queue: str) -> None:
        channel = self._channel
        if not channel._has_queue(queue):
            channel._new_queue(queue)
        channel._put(queue, copy.to_wire(str(uuid.uuid4()), queue))
