"""A connection of our own to RabbitMQ, with one channel that confirms what is published.

RabbitMQ blocks those that publish while it is short of memory or disk, and the worker's own
connection must go on consuming.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from celery_resilience.brokers.connections import CONNECT
from celery_resilience.brokers.rabbitmq.greenlets import keep_deadline
from celery_resilience.brokers.rabbitmq.pyamqp import has_arrived, tolerate_unreadable_properties
from celery_resilience.brokers.within import Awaited
from celery_resilience.errors import BrokerError

__all__ = ["SHORT", "ConfirmingConnection"]

#: What is said while RabbitMQ does not read what we send.
SHORT = "RabbitMQ takes no messages: it is short of memory or disk"


class ConfirmingConnection:
    """Opened when it is needed, with the settings of *theirs*, within *timeout* seconds; the loop
    *hub* reads it if there is one.

    The *listener* is told of it: ``on_open``, ``on_blocked``, ``on_lost``.
    """

    def __init__(self, theirs: Any, hub: Any, timeout: float | None, listener: Any) -> None:
        self._theirs = theirs
        self._hub = hub
        self._timeout = timeout or CONNECT
        self._listener = listener
        self._opening = Awaited(
            self._timeout,
            self._connected,
            "RabbitMQ, to which a connection is opened,",
            lambda opened: opened[0].collect(),
        )
        #: kombu's connection, and the channel that confirms; None while there is none.
        self.connection: Any = None
        self.channel: Any = None
        #: What is known to be there on its other end: queues, and what leads to them.
        self.declared: set[str] = set()
        #: RabbitMQ has told us that it takes no messages for now.
        self.is_blocked = False
        self._watched: int | None = None
        self.lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether its channel is open, as far as is known here."""
        return self.channel is not None and bool(self.channel.is_open)

    def is_lost_by(self, exc: BaseException) -> bool:
        """Whether the connection can't be used after *exc*."""
        return not self.is_open or isinstance(exc, self._theirs.connection_errors)

    def open(self) -> Any:
        """The channel that confirms; connects if need be."""
        if self.is_open:
            return self.channel
        self.disconnect(BrokerError("the channel was closed"))
        self.connection, channel = self._opening.get()
        self.connection.connection.on_blocked = partial(self._set_blocked, True)
        self.connection.connection.on_unblocked = partial(self._set_blocked, False)
        self.is_blocked = False
        self.channel = channel
        self._listener.on_open(channel)
        if self._hub is not None:
            # A descriptor of our own: py-amqp closes its socket before we can tell the loop, and
            # while a child of the pool has inherited it the loop would hear of it without end.
            self._watched = os.dup(self.connection.connection.sock.fileno())
            self._hub.add_reader(self._watched, self.read)
        return channel

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """kombu's connection, which is open, for one thread at a time."""
        with self.lock:
            self.open()
            yield self.connection

    def another(self) -> Any:
        """A kombu connection to the same broker, still to be opened.

        Without heartbeats: they would go unanswered while there is nothing to settle.
        """
        return self._theirs.clone(connect_timeout=self._timeout, heartbeat=0)

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

    def read(self) -> None:
        """Take in what has arrived."""
        with self.lock:
            try:
                while self.connection is not None and has_arrived(self.connection.connection):
                    self.connection.drain_events(timeout=0)
            except TimeoutError:
                pass  # the rest of a frame is still on its way
            except Exception as exc:
                self.disconnect(exc)

    def _set_blocked(self, blocked: bool, *reason: object) -> None:
        self.is_blocked = blocked
        self._listener.on_blocked(blocked)

    def refuse_while_blocked(self) -> None:
        """Raise BrokerError while RabbitMQ takes no messages."""
        if self.is_blocked and self._hub is None:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0)
        if self.is_blocked:
            raise BrokerError(SHORT)

    def close(self) -> None:
        """Drop the connection, and open none any more."""
        self._opening.leave()
        self.disconnect(BrokerError("closed"))

    def disconnect(self, why: BaseException) -> None:
        """Drop the connection because of *why*."""
        ours, self.connection, self.channel = self.connection, None, None
        if ours is not None:
            self.declared.clear()
            if self._hub is not None and self._watched is not None:
                self._hub.remove(self._watched)
                os.close(self._watched)
                self._watched = None
            ours.collect()
        self._listener.on_lost(why)


def _stay_closed() -> None:
    pass
