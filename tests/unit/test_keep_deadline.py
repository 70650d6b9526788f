"""What py-amqp waits for, and how long, on a connection that goes half open."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.transport import TCPTransport
from kombu import Connection

from celery_resilience.brokers.rabbitmq.greenlets import keep_deadline
from celery_resilience.brokers.within import within
from celery_resilience.worker.transport import bound_connections

FRAME = struct.pack(">BHI", 3, 1, 6) + b"sixty!" + b"\xce"


def silent() -> tuple[Any, socket.socket]:
    """A py-amqp connection whose answers may take 0.2 s, and its server's end."""
    ours, theirs = socket.socketpair()
    transport = TCPTransport("nowhere:1")
    transport.sock = ours
    transport._setup_transport()

    def blocking_read(timeout: float | None = None) -> Any:
        with transport.having_timeout(timeout):
            return transport.read_frame()

    connection = SimpleNamespace(
        transport=transport, read_timeout=0.2, blocking_read=blocking_read, connected=True
    )
    return connection, theirs


@pytest.fixture
def ends() -> Iterator[tuple[Any, socket.socket]]:
    connection, theirs = silent()
    with connection.transport.sock, theirs:
        keep_deadline(connection)
        yield connection, theirs


@pytest.mark.parametrize("sent", [0, 3, 7, 10, len(FRAME) - 1])
@pytest.mark.parametrize("timeout", [0, None])
def test_rest_of_a_frame_is_not_waited_for_for_ever(
    ends: tuple[Any, socket.socket], sent: int, timeout: float | None
) -> None:
    """Nor is what has come of it forgotten: when the rest is there it is a frame."""
    connection, theirs = ends
    theirs.sendall(FRAME[:sent])
    with pytest.raises(TimeoutError) as raised:
        within(20, lambda: connection.blocking_read(timeout), "the frame")
    assert "the frame has not" not in str(raised.value), "it hangs"
    theirs.sendall(FRAME[sent:])
    assert within(20, lambda: connection.blocking_read(timeout), "the frame") == (3, 1, b"sixty!")


def test_deadline_holds_on_a_connection_that_kombu_has_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it does without a word, for a greenlet that sends on one that is lost."""
    made: list[tuple[Any, socket.socket]] = []

    def establish(transport: object) -> Any:
        made.append(silent())
        return made[-1][0]

    monkeypatch.setattr("kombu.transport.pyamqp.Transport.establish_connection", establish)
    consumer = SimpleNamespace(ensure_connected=lambda connection: connection.ensure_connection())
    bound_connections(consumer)
    connection = consumer.ensure_connected(Connection("amqp://nowhere"))
    for times in (1, 2):
        established = connection.connection
        assert len(made) == times
        with pytest.raises(TimeoutError) as raised:
            within(20, lambda: established.blocking_read(), "the answer")  # noqa: B023
        assert "the answer has not" not in str(raised.value), "it hangs"
        established.connected = False
        established.transport.sock.close()
        made[-1][1].close()
