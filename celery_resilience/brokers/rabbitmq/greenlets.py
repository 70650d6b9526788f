"""RabbitMQ where the worker's loop is one greenlet of many: when it hears of its connection, and
how long it waits for an answer."""

from __future__ import annotations

import errno
from typing import Any

from celery_resilience.brokers.rabbitmq.pyamqp import has_arrived, is_readable, refuse_lost

__all__ = ["end_with", "keep_deadline", "keep_deadlines", "wait_for_nothing"]

#: How a socket says that there is nothing to read yet, and one with TLS.
_NOT_YET = (errno.EAGAIN, errno.ENOENT)


def end_with(connection: Any) -> None:
    """Let the loop hear that *connection* is lost, though another greenlet noticed it first.

    kombu would connect again without a word, and read for ever where nothing is consumed.
    """
    drain = connection.drain_events

    def drain_events(**options: Any) -> Any:
        refuse_lost(connection)
        return drain(**options)

    connection.drain_events = drain_events


def wait_for_nothing(connection: Any) -> None:
    """Let the loop read what there is on *connection*, that of its events, and go on.

    Celery 5.7 waits there for a tenth of a second after each message: a loop of greenlets would
    take ten messages a second, and hear as late that its own connection is lost.
    """
    drain = connection.drain_events

    def drain_events(**options: Any) -> Any:
        if connection.connected and has_arrived(connection.connection):
            return drain(**options)
        return None

    connection.drain_events = drain_events


def keep_deadlines(connection: Any) -> None:
    """:func:`keep_deadline` each time that the kombu *connection* connects.

    Whoever sends on it, such as a heartbeat of the worker's events, connects it again by itself
    while another greenlet closes it: one takes the other's answer, which never comes again.
    """
    establish = connection._establish_connection

    def _establish_connection() -> Any:
        established = establish()
        keep_deadline(established)
        return established

    connection._establish_connection = _establish_connection


def keep_deadline(connection: Any) -> None:
    """Let the py-amqp *connection* wait no longer for an answer than its ``read_timeout``, nor for
    the rest of a frame.

    py-amqp tells the kernel of it, and a greenlet does not wait there; and for a rest it asks again
    and again, without end.
    """
    most, transport = connection.read_timeout, connection.transport
    if most is None:
        return
    read, read_bytes = connection.blocking_read, transport._read

    def blocking_read(timeout: float | None = None) -> Any:
        return read(most if timeout is None else timeout)

    def _read(size: int, initial: bool = False) -> Any:
        if initial:
            return read_bytes(size, True)
        while True:
            try:
                return read_bytes(size, False, (errno.EINTR,))  # what has come it keeps
            except OSError as exc:
                if exc.errno not in _NOT_YET:
                    raise
            if not is_readable(transport.sock, most):
                raise TimeoutError(f"RabbitMQ has not sent the rest of a frame for {most:g} s")

    connection.blocking_read, transport._read = blocking_read, _read
