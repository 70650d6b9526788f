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

    def drain_events(self, timeout: float) -> None:
        if not self.connected:
            return
        self.connected = False
        raise ConnectionForced("by the operator")

    def heartbeat_check(self, rate: float) -> None:
        self.connected = True  # kombu's does it without a word


def test_loss_that_is_read_before_the_loop_begins_is_raised() -> None:
    lost: Any = Connection()
    _quick_drain(lost)  # Celery's
    lost = Connection()
    tell_of_losses(lost)
    with pytest.raises(ConnectionForced):
        _quick_drain(lost)


def test_heartbeat_does_not_connect_again() -> None:
    lost: Any = Connection()
    tell_of_losses(lost)
    lost.heartbeat_check(2.0)
    lost.connected = False
    with pytest.raises(ConnectionResetError, match="RabbitMQ is lost"):
        lost.heartbeat_check(2.0)
    assert not lost.connected


def test_timeout_of_a_connection_that_lives_stays_one() -> None:
    class Quiet(Connection):
        def drain_events(self, timeout: float) -> None:
            raise TimeoutError

    quiet: Any = Quiet()
    tell_of_losses(quiet)
    _quick_drain(quiet)
