"""Publishing to RabbitMQ and hearing, later, that it has the message.

On a connection of our own, because RabbitMQ blocks those that publish while it is short of
memory or disk, and the worker's must go on consuming. In a worker with an event loop the
confirms are read by that loop: many messages are unconfirmed at once, and an outage stops nothing
else.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from celery_resilience.brokers.base import Done, TooLarge
from celery_resilience.brokers.connections import CONNECT
from celery_resilience.brokers.rabbitmq.greenlets import keep_deadline
from celery_resilience.brokers.rabbitmq.pyamqp import tolerate_unreadable_properties
from celery_resilience.brokers.rabbitmq.unconfirmed import Published, UnconfirmedMessages
from celery_resilience.brokers.within import Awaited
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = ["PATIENCE", "SHORT", "ConfirmingPublisher"]

#: How long a confirm may take before the message counts as not published, in seconds.
PATIENCE = 30.0
#: What is said while it does not read what we send.
SHORT = "RabbitMQ takes no messages: it is short of memory or disk"
_PERSISTENT = 2
#: How many are unconfirmed at most, where many are published and not waited for.
_AT_ONCE = 500
#: What a frame of headers has beside them, in bytes.
_FRAME = 20


class ConfirmingPublisher:
    """A connection of our own whose every message is confirmed, or its failure told.

    For a command, no answer may take longer than *timeout* seconds.
    """

    def __init__(self, theirs: Any, hub: Any = None, timeout: float | None = None) -> None:
        self._theirs = theirs
        self._hub = hub
        self._patience = timeout or PATIENCE
        self._connect_timeout = timeout or CONNECT
        self._opening = Awaited(
            self._connect_timeout,
            self._connected,
            "RabbitMQ, to which a connection is opened,",
            lambda opened: opened[0].collect(),
        )
        #: kombu's connection; None while there is none.
        self.connection: Any = None
        self._channel: Any = None
        self._unconfirmed = UnconfirmedMessages()
        #: What is known to be there on this connection's other end: queues, and what leads to them.
        self.declared: set[str] = set()
        self._watched: int | None = None
        #: RabbitMQ has told us that it takes no messages for now.
        self._blocked = False
        #: What the next message needs is being declared: RabbitMQ has to answer.
        self._preparing = False
        #: Many are published, without waiting for each.
        self._pipelined = False
        self.lock = threading.RLock()

    def publish(
        self,
        copy: Envelope,
        exchange: str,
        routing_key: str,
        done: Done,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Publish *copy*; *done* is called when RabbitMQ has it, or when that failed.

        Without a loop that is before this returns, unless RabbitMQ is short of memory.

        The anonymous exchange (``""``) leads to the queue that the key names; *prepare* is called
        before, on the open connection.
        """
        with self.lock:
            try:
                self.open()
                self._refuse_while_blocked()
                if prepare is not None:
                    self._prepare(prepare)
                number = self._send(copy, exchange, routing_key, done)
            except Exception as exc:
                # Others are unconfirmed on this connection: they must not fail with this one.
                if not self._is_open or isinstance(exc, self._theirs.connection_errors):
                    self.disconnect(exc)
                done(exc)
                return
            if self._pipelined:
                self._wait(lambda: len(self._unconfirmed) < _AT_ONCE, self._patience)
            elif self._hub is None:
                self._wait(lambda: number not in self._unconfirmed, self._patience)

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Wait, without a loop too, only at the end for the confirms of all that is published
        within, or to their failures."""
        with self.lock:
            self._pipelined = True
            try:
                yield
            finally:
                self._pipelined = False
                self._wait(lambda: not self._unconfirmed, self._patience)

    def _prepare(self, prepare: Callable[[], None]) -> None:
        outer, self._preparing = self._preparing, True
        try:
            prepare()
        finally:
            self._preparing = outer
        # What is read on the way to something else may be about a message published before.
        if not self._is_open:
            raise BrokerError("RabbitMQ has closed the channel")

    def _send(self, copy: Envelope, exchange: str, routing_key: str, done: Done) -> int:
        channel = self._channel
        properties = {k: v for k, v in copy.properties.items() if k != "priority"}
        # However its sender has sent it: from here on RabbitMQ has the only copy.
        properties["delivery_mode"] = _PERSISTENT
        message = channel.prepare_message(
            copy.body,
            priority=copy.properties.get("priority"),
            content_type=copy.content_type,
            content_encoding=copy.content_encoding,
            headers=dict(copy.headers),
            properties=properties,
        )
        # What can't be encoded fails here, before it counts: RabbitMQ numbers what it receives,
        # and a number that is off by one would ack a message whose copy is not confirmed.
        encoded = message._serialize_properties()
        message._serialize_properties = lambda: encoded  # once is enough: it takes long
        # RabbitMQ would close the connection, and all that is unconfirmed on it would fail.
        most = self.connection.connection.frame_max
        if most and len(encoded) + _FRAME > most:
            raise TooLarge(f"RabbitMQ takes headers of {most - _FRAME} bytes, not {len(encoded)}")
        published = Published(copy, exchange, routing_key, done)
        try:
            with self._unconfirmed.send(published) as number:
                # Not channel.basic_publish: where the app asks for confirms, that one waits.
                # The time limit is for a large one that a RabbitMQ short of memory stops reading.
                channel._basic_publish(
                    message, exchange=exchange, routing_key=routing_key, mandatory=True,
                    timeout=self._patience,
                )  # fmt: skip
        except BaseException as exc:
            self.disconnect(exc)
            raise
        return number

    def flush(self, timeout: float) -> None:
        """Wait, *timeout* seconds at most, until nothing is unconfirmed."""
        with self.lock:
            self._wait(lambda: not self._unconfirmed, timeout)

    def _wait(self, over: Callable[[], bool], timeout: float) -> None:
        until = time.monotonic() + timeout
        while not over():
            left = until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError(f"no confirm within {timeout:g} s")
                self.connection.drain_events(timeout=min(left, 1.0))
            except TimeoutError as exc:
                if left <= 0:
                    # One that is short of memory will read it, from a closed connection too.
                    if not self._blocked:
                        self.disconnect(exc)
                    return
            except Exception as exc:
                self.disconnect(exc)
                return

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        with self.lock:
            if self._hub is None:
                self._on_readable()  # no one else does, when nothing is waited for
            # A blocked broker still reads, and confirms, when it has recovered.
            if not self._blocked and self._unconfirmed.longer_than(self._patience):
                self.disconnect(BrokerError(f"no confirm within {self._patience:g} s"))

    def _on_return(self, exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        self.declared.discard(routing_key)
        self._unconfirmed.on_return(exchange, routing_key, message)

    # Our connection

    @property
    def _is_open(self) -> bool:
        return self._channel is not None and bool(self._channel.is_open)

    def open(self) -> Any:
        """The channel that confirms; connects if need be."""
        if self._is_open:
            return self._channel
        self.disconnect(BrokerError("the channel was closed"))
        self.connection, channel = self._opening.get()
        self.connection.connection.on_blocked = partial(self._set_blocked, True)
        self.connection.connection.on_unblocked = partial(self._set_blocked, False)
        self._blocked = False
        self._channel = channel
        channel.events["basic_ack"].add(self._unconfirmed.on_ack)
        channel.events["basic_nack"].add(self._unconfirmed.on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._unconfirmed.begin()
        if self._hub is not None:
            # A descriptor of our own: py-amqp closes its socket before we can tell the loop, and
            # while a child of the pool has inherited it the loop would hear of it without end.
            self._watched = os.dup(self.connection.connection.sock.fileno())
            self._hub.add_reader(self._watched, self._on_readable)
        return channel

    def another(self) -> Any:
        """A kombu connection to the same broker, still to be opened.

        Without heartbeats: they would go unanswered while there is nothing to settle.
        """
        return self._theirs.clone(connect_timeout=self._connect_timeout, heartbeat=0)

    def _connected(self) -> tuple[Any, Any]:
        """A connection and its channel that confirms; a name server is asked on the way, which can
        not be interrupted."""
        connection = self.another()
        try:
            connection.connect()
            keep_deadline(connection.connection)
            tolerate_unreadable_properties(connection.connection)  # a queue may be browsed
            channel = connection.channel()
            # One that RabbitMQ has closed, py-amqp would open again: it would confirm nothing.
            channel.open = _stay_closed
            channel.confirm_select()
        except BaseException:
            connection.collect()
            raise
        return connection, channel

    def _on_readable(self) -> None:
        with self.lock:
            try:
                while self.connection is not None and _is_readable(self.connection.connection.sock):
                    self.connection.drain_events(timeout=0)
            except TimeoutError:
                pass  # the rest of a frame is still on its way
            except Exception as exc:
                self.disconnect(exc)

    def _set_blocked(self, blocked: bool, *reason: object) -> None:
        self._blocked = blocked
        self._unconfirmed.wait_anew()
        if blocked and self._preparing and not self._unconfirmed.sending:
            # It reads no more of what we send, and an answer would be waited for until it does.
            raise BrokerError(SHORT)

    def _refuse_while_blocked(self) -> None:
        if self._blocked and self._hub is None:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0)
        if self._blocked:
            raise BrokerError(SHORT)

    def close(self) -> None:
        """Drop our connection, and open none any more."""
        self._opening.leave()
        self.disconnect(BrokerError("closed"))

    def disconnect(self, why: BaseException) -> None:
        """Drop our connection; everything unconfirmed has failed because of *why*."""
        ours, self.connection, self._channel = self.connection, None, None
        if ours is not None:
            self.declared.clear()
            if self._hub is not None and self._watched is not None:
                self._hub.remove(self._watched)
                os.close(self._watched)
                self._watched = None
            ours.collect()
        self._unconfirmed.fail(why)


def _stay_closed() -> None:
    pass


def _is_readable(sock: Any) -> bool:
    """Whether *sock* has something for us: cheaper than to try and fail, once for each confirm."""
    pending = getattr(sock, "pending", None)
    if pending is not None and pending():  # over TLS one event may bring several frames
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
