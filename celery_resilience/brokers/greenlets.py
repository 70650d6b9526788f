"""RabbitMQ where the worker's loop is one greenlet of many: when it hears of its connection."""

from __future__ import annotations

from typing import Any

from celery_resilience.brokers.channels import has_arrived

__all__ = ["end_with", "wait_for_nothing"]


def end_with(connection: Any) -> None:
    """Let the loop hear that *connection* is lost, though another greenlet noticed it first.

    kombu would connect anew without a word, and read for ever where nothing is consumed.
    """
    drain = connection.drain_events

    def drain_events(**options: Any) -> Any:
        if not connection.connected:
            raise ConnectionResetError("the connection to RabbitMQ is lost")
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
