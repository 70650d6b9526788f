"""Through which transport a worker takes its messages from Redis.

Ours, unless something speaks against it: kombu's takes a message off its list before it records
who has it. Nothing but the worker's own connection is changed: the app, its senders, its results,
events and remote control go through kombu's, and what others read of the connection stays as it
was.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.exceptions import ImproperlyConfigured
from celery.worker import consumer as _consumer

from celery_resilience.brokers.connections import bound
from celery_resilience.brokers.rabbitmq.greenlets import keep_deadlines
from celery_resilience.settings import PREFIX, Settings
from celery_resilience.transport.selection import (
    is_named,
    is_ours,
    lets_ours_take,
    speaks_redis,
    why_not,
    why_server_refuses,
)

__all__ = ["KOMBUS", "OWN", "WorkerTransport", "bound_connections"]

# The stubs do not know what a consumer has.
Consumer: Any = _consumer.Consumer

logger = logging.getLogger("celery_resilience")

#: What workers answer for which transport they take through.
OWN, KOMBUS = "own", "kombu"
_SETTING = f"{PREFIX}redis_transport"
_LATE = (
    "celery_resilience was loaded after the worker had connected; ours from its next connection on"
)


def bound_connections(c: Any) -> None:
    """No connection of the worker's waits for ever: a loop that stands settles nothing."""
    ensure = c.ensure_connected

    def ensure_connected(connection: Any) -> Any:
        bound(connection)
        if connection.transport.driver_type == "amqp":
            keep_deadlines(connection)
        return ensure(connection)

    c.ensure_connected = ensure_connected


class WorkerTransport:
    """The transport of the worker that has made the consumer *c*; it is chosen at each connect."""

    def __init__(self, c: Any, settings: Settings) -> None:
        self._c = c
        self._wanted = settings.redis_transport
        #: Why the worker takes through kombu's; empty if it does not.
        self.why = ""
        #: :data:`OWN` or :data:`KOMBUS`; None: the broker is no Redis.
        self.name: str | None = None
        self._enabled = settings.enabled

    def choose(self) -> None:
        """Choose for all connections to come, and see to each of them where ours may take."""
        c = self._c
        if not speaks_redis(c.conninfo):
            return
        if is_named(c.conninfo):
            self.name = OWN
            return
        if not self._enabled or self._wanted == KOMBUS:
            self.name = KOMBUS
            off = "celery_resilience is switched off"
            self.why = off if not self._enabled else f"{_SETTING} is {KOMBUS!r}"
            return
        theirs = type(c).connection_for_read is not Consumer.connection_for_read
        why = f"{type(c).__qualname__} has a connection_for_read of its own" if theirs else ""
        self._note(why or why_not(c.conninfo))
        if not theirs:
            c.connection_for_read = self._connection_for_read
        if getattr(c, "connection", None) is not None and not self.why:
            self.name, self.why = KOMBUS, _LATE

    def _connection_for_read(self, heartbeat: Any = None) -> Any:
        """In place of the consumer's: the app's connection, connected."""
        c = self._c
        connection = c.app.connection_for_read(heartbeat=heartbeat)
        if is_named(connection) or not speaks_redis(connection):
            return c.ensure_connected(connection)
        why = why_not(connection)
        if not why:
            lets_ours_take(connection)
            connection = c.ensure_connected(connection)
            if not is_ours(connection):  # it has failed over to another broker
                self.name, self.why = None, ""
                return connection
            why = self._why_refused(connection)
        self._note(why)
        if not why:
            return connection
        lets_ours_take(connection, False)
        return c.ensure_connected(connection)

    def _why_refused(self, connection: Any) -> str:
        try:
            return why_server_refuses(connection, self._c.app.amqp.queues.consume_from)
        except BaseException:
            connection.release()
            raise

    def _note(self, why: str) -> None:
        """Remember *why* kombu's it is, empty: it is not; told once, refused where it may not."""
        before, self.why = self.why, why
        self.name = KOMBUS if why else OWN
        if why and self._wanted == OWN:
            raise ImproperlyConfigured(
                f"{_SETTING} is {OWN!r}, and this worker can't take from Redis through our own "
                f"transport: {why}"
            )
        if why and why != before:
            logger.warning(
                "this worker takes its messages through kombu's Redis transport: %s. The message "
                "that it is taking when it is killed is lost", why,
            )  # fmt: skip

    def told(self) -> dict[str, str]:
        """What ``inspect stats`` and the doctor say of it."""
        return {} if self.name is None else {"redis_transport": self.name, "why": self.why}
