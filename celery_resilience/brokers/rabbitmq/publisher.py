"""Publishing to RabbitMQ and hearing, later, that it has the message.

In a worker with an event loop the confirms are read by that loop: many messages are unconfirmed at
once, and an outage stops nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_resilience.brokers.base import Done, TooLarge
from celery_resilience.brokers.rabbitmq.connection import SHORT, ConfirmingConnection
from celery_resilience.brokers.rabbitmq.unconfirmed import Published, UnconfirmedMessages
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = ["PATIENCE", "ConfirmingPublisher"]

#: How long a confirm may take before the message counts as not published, in seconds.
PATIENCE = 30.0
_PERSISTENT = 2
#: How many are unconfirmed at most, where many are published and not waited for.
_AT_ONCE = 500
#: What a frame of headers has beside them, in bytes.
_FRAME = 20


class ConfirmingPublisher:
    """Publishes on a connection of our own; every message is confirmed, or its failure told.

    For a command, no answer may take longer than *timeout* seconds.
    """

    def __init__(self, theirs: Any, hub: Any = None, timeout: float | None = None) -> None:
        self._has_loop = hub is not None
        self._patience = timeout or PATIENCE
        self.link = ConfirmingConnection(theirs, hub, timeout, self)
        self._unconfirmed = UnconfirmedMessages()
        #: What the next message needs is being declared: RabbitMQ has to answer.
        self._preparing = False
        #: Many are published, without waiting for each.
        self._pipelined = False

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
        with self.link.lock:
            try:
                self.link.open()
                self.link.refuse_while_blocked()
                if prepare is not None:
                    self._prepare(prepare)
                number = self._send(copy, exchange, routing_key, done)
            except Exception as exc:
                # Others are unconfirmed on this connection: they must not fail with this one.
                if self.link.is_lost_by(exc):
                    self.link.disconnect(exc)
                done(exc)
                return
            if self._pipelined:
                self._wait(lambda: len(self._unconfirmed) < _AT_ONCE, self._patience)
            elif not self._has_loop:
                self._wait(lambda: number not in self._unconfirmed, self._patience)

    @contextmanager
    def pipelined(self) -> Iterator[None]:
        """Wait, without a loop too, only at the end for the confirms of all that is published
        within, or to their failures."""
        with self.link.lock:
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
        if not self.link.is_open:
            raise BrokerError("RabbitMQ has closed the channel")

    def _send(self, copy: Envelope, exchange: str, routing_key: str, done: Done) -> int:
        channel = self.link.channel
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
        most = self.link.connection.connection.frame_max
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
            self.link.disconnect(exc)
            raise
        return number

    def flush(self, timeout: float) -> None:
        """Wait, *timeout* seconds at most, until nothing is unconfirmed."""
        with self.link.lock:
            self._wait(lambda: not self._unconfirmed, timeout)

    def _wait(self, over: Callable[[], bool], timeout: float) -> None:
        until = time.monotonic() + timeout
        while not over():
            left = until - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError(f"no confirm within {timeout:g} s")
                self.link.connection.drain_events(timeout=min(left, 1.0))
            except TimeoutError as exc:
                if left <= 0:
                    # One that is short of memory will read it, from a closed connection too.
                    if not self.link.is_blocked:
                        self.link.disconnect(exc)
                    return
            except Exception as exc:
                self.link.disconnect(exc)
                return

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        with self.link.lock:
            if not self._has_loop:
                self.link.read()  # no one else does, when nothing is waited for
            # A blocked broker still reads, and confirms, when it has recovered.
            if not self.link.is_blocked and self._unconfirmed.longer_than(self._patience):
                self.link.disconnect(BrokerError(f"no confirm within {self._patience:g} s"))

    # What happens to the connection

    def on_open(self, channel: Any) -> None:
        """Hear on *channel* what RabbitMQ confirms, refuses and returns."""
        channel.events["basic_ack"].add(self._unconfirmed.on_ack)
        channel.events["basic_nack"].add(self._unconfirmed.on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._unconfirmed.begin()

    def on_blocked(self, blocked: bool) -> None:
        """RabbitMQ reads no more of what is sent, or reads again."""
        self._unconfirmed.wait_anew()
        if blocked and self._preparing and not self._unconfirmed.sending:
            # An answer would be waited for until it reads again.
            raise BrokerError(SHORT)

    def on_lost(self, why: BaseException) -> None:
        """All that is unconfirmed has failed because of *why*."""
        self._unconfirmed.fail(why)

    def _on_return(self, exc: Any, exchange: str, routing_key: str, message: Any) -> None:
        self.link.declared.discard(routing_key)
        self._unconfirmed.on_return(exchange, routing_key, message)
