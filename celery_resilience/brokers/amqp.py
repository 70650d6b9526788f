"""RabbitMQ: publish the copy, let the original go when the confirm comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from amqp.spec import Basic
from kombu import Queue

from celery_resilience.brokers import Done, Found, NotOurs, Received
from celery_resilience.brokers.confirms import Confirms
from celery_resilience.envelope import Envelope
from celery_resilience.errors import BrokerError

__all__ = ["AmqpBroker"]

#: How long a queue is waited for that has said it has more messages, in seconds.
_QUIET = 2.0
#: How long one is waited for that has handed out all that it counts, in seconds.
_AT_THE_END = 0.2
#: A virtual host may have another default, one that counts deliveries.
_CLASSIC = {"x-queue-type": "classic"}
#: The largest prefetch count that AMQP can say.
_MOST_AT_ONCE = 65535


@dataclass
class _Look:
    """Messages of a queue that RabbitMQ has lent us."""

    channel: Any
    queue: str
    tag: Any = None
    #: Those that were handed on, and those that wait for that.
    held: list[Any] = field(default_factory=list)
    arrived: list[Any] = field(default_factory=list)


class AmqpBroker:
    """A :class:`~celery_resilience.brokers.Broker` on RabbitMQ."""

    def __init__(self, connection: Any, hub: Any = None) -> None:
        self._confirms = Confirms(connection, hub)
        self._looks: list[_Look] = []

    # Moves

    def hold(self, received: Received, copy: Envelope, delay: float, done: Done) -> None:
        self._move(received, copy.due_in(delay), received.envelope.queue, done)

    def bury(
        self, received: Received, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        self._move(received, letter, queue, done, lambda: self._declare(queue, arguments))

    def _move(
        self,
        received: Received,
        copy: Envelope,
        queue: str,
        done: Done,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        channel = received.message.channel
        if not received.acked and (channel is None or not channel.is_open):
            # RabbitMQ has taken the message back with the channel and delivers it again.
            done(NotOurs("its channel is closed: RabbitMQ delivers it again"))
            return
        self._confirms.publish(copy, queue, done, prepare)

    def flush(self, timeout: float) -> None:
        self._confirms.flush(timeout)

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        self._confirms.check()

    def _declare(self, queue: str, arguments: Any) -> None:
        """Make *queue* unless it is there; an existing one is taken as it is."""
        self._confirms.open()
        if queue in self._confirms.declared:
            return
        if self._size(queue) is None:
            with self._confirms.connection.channel() as channel:
                Queue(
                    queue,
                    exchange=None,
                    durable=True,
                    queue_arguments=self._without_a_limit(dict(arguments or _CLASSIC)),
                ).bind(channel).queue_declare()
        self._confirms.declared.add(queue)

    def _without_a_limit(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """From 4.0 on a quorum queue destroys what was delivered 20 times; a look is a delivery."""
        version = str(self._confirms.connection.connection.server_properties.get("version", "0"))
        if arguments.get("x-queue-type") == "quorum" and int(version.split(".")[0] or 0) >= 4:
            arguments.setdefault("x-delivery-limit", -1)
        return arguments

    def _size(self, queue: str) -> int | None:
        channel = self._confirms.connection.channel()
        try:
            answer = channel.queue_declare(queue, passive=True)
        except channel.connection.channel_errors as exc:
            if getattr(exc, "reply_code", None) == 404:
                return None
            raise
        channel.close()
        return int(answer.message_count)

    # For an operator: always without a loop

    def count(self, queue: str) -> int:
        with self._confirms.lock:
            self._confirms.open()
            return self._size(queue) or 0

    def look(self, queue: str, limit: int | None = None) -> Iterator[Found]:
        self._confirms.open()
        there = self._size(queue)
        if there is None or limit == 0:
            return
        # A channel of its own: should we die, it closes and RabbitMQ takes everything back.
        channel = self._confirms.connection.channel()
        look = _Look(channel, queue)
        self._looks.append(look)
        channel.basic_qos(0, 0 if limit is None or limit > _MOST_AT_ONCE else limit, False)
        look.tag = channel.basic_consume(queue, callback=look.arrived.append)
        while limit is None or len(look.held) < limit:
            if not look.arrived:
                # What was given back a moment ago may not be counted yet.
                quiet = _QUIET if len(look.held) < there else _AT_THE_END
                try:
                    self._confirms.connection.drain_events(timeout=quiet)
                except TimeoutError:
                    break
                continue
            message = channel.message_to_python(look.arrived.pop(0))
            look.held.append(message)
            yield Found(Envelope.received(message, queue), key=message)

    def release(self, found: Found, copy: Envelope, queue: str) -> None:
        result: list[BaseException | None] = []
        received = Received(found.key, copy, let_go=found.key.ack)
        self._move(received, copy, queue, result.append)
        if result and result[0] is not None:
            raise result[0]
        found.key.ack()

    def close(self) -> None:
        with self._confirms.lock:
            for look in self._looks:
                if look.channel.is_open:
                    self._give_back(look)
            self._looks.clear()
            self._confirms.disconnect(BrokerError("closed"))

    def _give_back(self, look: _Look) -> None:
        """Return what was looked at, and wait until it is there for the next one to look at."""
        look.channel.basic_cancel(look.tag)  # what is on its way has arrived afterwards
        lent = sum(not message.acknowledged for message in look.held) + len(look.arrived)
        # All in one go, and before the channel closes: a quorum queue takes back what was
        # rejected one by one, or with the channel, in any order.
        if lent:
            look.channel.send_method(Basic.Nack, "Lbb", (0, True, True))
        look.channel.close()
        until = time.monotonic() + _QUIET
        while (self._size(look.queue) or 0) < lent and time.monotonic() < until:
            time.sleep(0.01)
