"""RabbitMQ: publish on a connection of our own, let the original go when the confirm comes.

The connection is our own because RabbitMQ blocks those that publish while it is short of memory
or disk, and the worker's must go on consuming. In a worker with an event loop the confirms are
read by that loop, so that many moves are under way at once and an outage stops nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from amqp.spec import Basic
from kombu import Queue

from celery_resilience.brokers import Done, Found, NotOurs, Received, Unroutable
from celery_resilience.envelope import Envelope
from celery_resilience.errors import BrokerError

__all__ = ["AmqpBroker"]

#: How long a confirm may take before the move counts as failed, in seconds.
_PATIENCE = 30.0
_CONNECT = 5.0
#: How long a queue is waited for that has said it has more messages, in seconds.
_QUIET = 2.0
#: How long one is waited for that has handed out all that it counts, in seconds.
_AT_THE_END = 0.2
#: A virtual host may have another default, one that counts deliveries.
_CLASSIC = {"x-queue-type": "classic"}
#: The largest prefetch count that AMQP can say.
_MOST_AT_ONCE = 65535


@dataclass
class _Pending:
    queue: str
    body: bytes
    since: float
    done: Done
    returned: bool = False


class AmqpBroker:
    """A :class:`~celery_resilience.brokers.Broker` on RabbitMQ."""

    def __init__(self, connection: Any, hub: Any = None) -> None:
        self._theirs = connection
        self._hub = hub
        self._ours: Any = None
        self._channel: Any = None
        self._looking: list[tuple[Any, str, list[Any]]] = []
        #: The moves under way, by the sequence number that RabbitMQ will confirm.
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._published = 0
        self._declared: set[str] = set()
        self._lock = threading.RLock()

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
        with self._lock:
            try:
                if prepare is not None:
                    prepare()
                number = self._publish(copy, queue, done)
            except Exception as exc:
                self._disconnect(exc)
                done(exc)
                return
            if self._hub is None:
                self._wait(lambda: number not in self._pending, _PATIENCE)

    def _publish(self, copy: Envelope, queue: str, done: Done) -> int:
        channel = self._open()
        properties = {k: v for k, v in copy.properties.items() if k != "priority"}
        message = channel.prepare_message(
            copy.body,
            priority=copy.properties.get("priority"),
            content_type=copy.content_type,
            content_encoding=copy.content_encoding,
            headers=dict(copy.headers),
            properties=properties,
        )
        self._published += 1
        number = self._published
        self._pending[number] = _Pending(queue, copy.body, time.monotonic(), done)
        try:
            # Not channel.basic_publish: where the app asks for confirms, that one waits.
            channel._basic_publish(message, exchange="", routing_key=queue, mandatory=True)
        except BaseException:
            self._pending.pop(number, None)
            raise
        return number

    def flush(self, timeout: float) -> None:
        with self._lock:
            self._wait(lambda: not self._pending, timeout)

    def _wait(self, over: Callable[[], bool], timeout: float) -> None:
        until = time.monotonic() + timeout
        while not over():
            left = until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError(f"no confirm within {timeout:g} s")
                self._ours.drain_events(timeout=min(left, 1.0))
            except TimeoutError as exc:
                if left <= 0:
                    self._disconnect(exc)
                    return
            except Exception as exc:
                self._disconnect(exc)
                return

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        with self._lock:
            oldest = next(iter(self._pending.values()), None)
            if oldest is not None and time.monotonic() - oldest.since > _PATIENCE:
                self._disconnect(BrokerError(f"no confirm within {_PATIENCE:g} s"))

    # What RabbitMQ answers

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for pending in self._answered(tag, multiple):
            gone = Unroutable(f"there is no queue {pending.queue}") if pending.returned else None
            pending.done(gone)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for pending in self._answered(tag, multiple):
            pending.done(BrokerError(f"{pending.queue} refused it: it is full or unavailable"))

    def _on_return(self, exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        # It comes before its own confirm and does not say whose it is.
        for pending in self._pending.values():
            if not pending.returned and pending.queue == routing_key:
                pending.returned = True
                return

    def _answered(self, tag: int, multiple: bool) -> list[_Pending]:
        numbers = [n for n in self._pending if n <= tag] if multiple else [tag]
        found = [self._pending.pop(n, None) for n in numbers]
        return [pending for pending in found if pending is not None]

    # Our connection

    def _open(self) -> Any:
        if self._channel is not None and self._channel.is_open:
            return self._channel
        self._disconnect(BrokerError("the channel was closed"))
        self._ours = self._theirs.clone(connect_timeout=_CONNECT)
        self._ours.connect()
        channel = self._channel = self._ours.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._published = 0
        if self._hub is not None:
            self._watched = self._ours.connection.sock
            self._hub.add_reader(self._watched, self._on_readable)
        return channel

    def _on_readable(self) -> None:
        with self._lock:
            try:
                self._ours.drain_events(timeout=0)
            except TimeoutError:
                pass
            except Exception as exc:
                self._disconnect(exc)

    def _disconnect(self, why: BaseException) -> None:
        """Close our connection; every move under way has failed because of *why*."""
        ours, self._ours, self._channel = self._ours, None, None
        self._declared.clear()
        if ours is not None:
            if self._hub is not None:
                self._hub.remove(self._watched)
            ours.collect()
        pending, self._pending = self._pending, OrderedDict()
        for move in pending.values():
            move.done(why)

    def _declare(self, queue: str, arguments: Any) -> None:
        """Make *queue* unless it is there; an existing one is taken as it is."""
        self._open()
        if queue in self._declared:
            return
        if not self._exists(queue):
            with self._ours.channel() as channel:
                Queue(
                    queue,
                    exchange=None,
                    durable=True,
                    queue_arguments=self._without_a_limit(dict(arguments or _CLASSIC)),
                ).bind(channel).queue_declare()
        self._declared.add(queue)

    def _without_a_limit(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """From 4.0 on a quorum queue destroys what was delivered 20 times; a look is a delivery."""
        version = str(self._ours.connection.server_properties.get("version", "0"))
        if arguments.get("x-queue-type") == "quorum" and int(version.split(".")[0] or 0) >= 4:
            arguments.setdefault("x-delivery-limit", -1)
        return arguments

    def _exists(self, queue: str) -> bool:
        return self._size(queue) is not None

    def _size(self, queue: str) -> int | None:
        channel = self._ours.channel()
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
        with self._lock:
            self._open()
            return self._size(queue) or 0

    def look(self, queue: str, limit: int | None = None) -> Iterator[Found]:
        self._open()
        there = self._size(queue)
        if there is None or limit == 0:
            return
        # A channel of its own: should we die, it closes and RabbitMQ takes everything back.
        channel = self._ours.channel()
        held: list[Any] = []
        arrived: list[Any] = []
        self._looking.append((channel, queue, held))
        channel.basic_qos(0, 0 if limit is None or limit > _MOST_AT_ONCE else limit, False)
        tag = channel.basic_consume(queue, callback=arrived.append)
        while limit is None or len(held) < limit:
            if not arrived:
                # What was given back a moment ago may not be counted yet.
                quiet = _QUIET if len(held) < there else _AT_THE_END
                try:
                    self._ours.drain_events(timeout=quiet)
                except TimeoutError:
                    break
                continue
            message = channel.message_to_python(arrived.pop(0))
            held.append(message)
            yield Found(Envelope.received(message, queue), key=message)
        channel.basic_cancel(tag)

    def release(self, found: Found, copy: Envelope, queue: str) -> None:
        result: list[BaseException | None] = []
        received = Received(found.key, copy, let_go=found.key.ack)
        self._move(received, copy, queue, result.append)
        if result and result[0] is not None:
            raise result[0]
        found.key.ack()

    def close(self) -> None:
        with self._lock:
            for channel, queue, held in self._looking:
                if channel.is_open:
                    self._give_back(channel, queue, held)
            self._looking.clear()
            self._disconnect(BrokerError("closed"))

    def _give_back(self, channel: Any, queue: str, held: list[Any]) -> None:
        """Return what was looked at, and wait until it is there for the next one to look at."""
        # All in one go, and before the channel closes: a quorum queue takes back what was
        # rejected one by one, or with the channel, in any order.
        if held:
            channel.send_method(Basic.Nack, "Lbb", (0, True, True))
        channel.close()
        returned = sum(not message.acknowledged for message in held)
        until = time.monotonic() + _QUIET
        while (self._size(queue) or 0) < returned and time.monotonic() < until:
            time.sleep(0.01)
