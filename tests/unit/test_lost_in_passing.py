"""A connection to RabbitMQ whose loss is noticed outside of Celery's loop."""

from __future__ import annotations

from typing import Any

import pytest
from amqp.exceptions import ConnectionForced
from celery.worker.loops import _quick_drain

from celery_resilience.brokers.rabbitmq.pyamqp import tell_of_losses


class Connection:
    """kombu's, on which RabbitMQ has said that it closes it."""

    connected = True

    def __init__(self, end: Exception) -> None:
        self._end = end

    def drain_events(self, timeout: float) -> None:
        self.connected = False
        raise self._end

    def heartbeat_check(self, rate: float) -> None:
        self.connected = True  # kombu's does it without a word


@pytest.mark.parametrize(
    "end", [ConnectionForced("by the operator"), OSError("Server unexpectedly closed connection")]
)
def test_loss_that_is_read_before_the_loop_begins_is_raised(end: Exception) -> None:
    """py-amqp's errors have no number, which Celery takes for nothing to read."""
    lost: Any = Connection(end)
    _quick_drain(lost)  # Celery's
    tell_of_losses(lost)
    with pytest.raises(type(end)):
        _quick_drain(lost)


def test_heartbeat_does_not_connect_again() -> None:
    lost: Any = Connection(OSError())
    tell_of_losses(lost)
    lost.heartbeat_check(2.0)
    lost.connected = False
    with pytest.raises(ConnectionResetError, match="RabbitMQ is lost"):
        lost.heartbeat_check(2.0)
    assert not lost.connected


def test_timeout_of_a_connection_that_lives_stays_one() -> None:
    class Quiet(Connection):
        connected = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]

    quiet: Any = Quiet(TimeoutError())
    tell_of_losses(quiet)
    _quick_drain(quiet)
