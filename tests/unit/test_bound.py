"""A list of brokers: the deadlines of the first hold on whichever of them is reached."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu import Connection

from celery_resilience.brokers.connections import bound


def test_answer_of_the_next_rabbitmq_has_a_deadline() -> None:
    connection = Connection("amqp://one:1;amqp://two:2")
    bound(connection, 3.0)
    connection.maybe_switch_next()
    given: dict[str, Any] = {}

    def connected(**options: Any) -> Any:
        given.update(options)
        return SimpleNamespace(connect=lambda: None)

    connection.transport.Connection = connected
    connection.transport.establish_connection()
    assert (given["host"], given["read_timeout"], given["write_timeout"]) == ("two:2", 3.0, 3.0)


@pytest.mark.parametrize("scheme", ["redis", "resilient-redis"])
def test_answer_of_the_next_redis_has_a_deadline(scheme: str) -> None:
    """It accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connection = Connection(f"{scheme}://127.0.0.1:1/0;{scheme}://127.0.0.1:{port}/0")
        bound(connection, 0.2)
        connection.maybe_switch_next()
        begun = time.monotonic()
        with pytest.raises((TimeoutError, redis.exceptions.TimeoutError)):
            connection.transport.establish_connection()
        assert time.monotonic() - begun < 20
        connection.collect()
