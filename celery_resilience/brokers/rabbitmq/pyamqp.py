"""RabbitMQ: a channel that it has closed, though it was not noticed here yet.

RabbitMQ has taken back all that it had delivered there: none of it can be acknowledged any more,
and a copy that is published all the same is one too many.
"""

from __future__ import annotations

import _socket
import base64
import errno
import logging
import select
import socket
import struct
from importlib import import_module
from typing import Any

from amqp.basic_message import Message
from amqp.exceptions import PreconditionFailed, RecoverableConnectionError
from amqp.serialization import dumps
from amqp.spec import Channel

__all__ = [
    "UNREADABLE",
    "has_arrived",
    "is_alive",
    "is_readable",
    "notice_losses",
    "refuse_lost",
    "tell_of_losses",
    "tolerate_unreadable_properties",
]

logger = logging.getLogger("celery_resilience")

#: Set on a channel that was closed and opened again.
_REOPENED = "_resilience_reopened"
#: How much of what a connection has received, and not been read yet, is looked at, in bytes.
_LOOK = 256 * 1024
#: The frames that there are: methods, headers, bodies, heartbeats.
_KINDS = (1, 2, 3, 8)
#: How the methods begin that close a connection, or a channel.
_CLOSES = (b"\x00\x0a\x00\x32", b"\x00\x14\x00\x28")


def notice_losses(channel: Any) -> None:
    """Remember it if the py-amqp *channel* is closed, though it is open again afterwards.

    If RabbitMQ closes it because of its ``consumer_timeout``, that is the loss of the connection.
    """
    _connect_anew_after_timeout(channel)
    again = channel.open

    def open_() -> None:
        setattr(channel, _REOPENED, True)
        again()

    channel.open = open_


def _connect_anew_after_timeout(channel: Any) -> None:
    """Celery would end the worker, and the next one that runs the same task."""
    close = channel._callbacks[Channel.Close]

    def on_close(*told: Any) -> None:
        try:
            close(*told)
        except PreconditionFailed as exc:
            if "timed out" not in str(exc):
                raise
            logger.warning(
                "a task runs for longer than RabbitMQ's consumer_timeout, and RabbitMQ has closed "
                "the channel (%s): the worker connects again, running tasks go on",
                exc,
            )
            raise RecoverableConnectionError(str(exc)) from exc

    channel._callbacks[Channel.Close] = on_close


def tell_of_losses(connection: Any) -> None:
    """Let Celery's loop hear that the kombu *connection* is lost, whoever has noticed it first.

    What Celery reads before its loop begins may be the end of the connection, and it goes on. No
    loop hears of a socket that is closed here, and the next heartbeat would connect again without
    a word, and consume nothing.
    """
    drain, check = connection.drain_events, connection.heartbeat_check

    def drain_events(**options: Any) -> Any:
        try:
            return drain(**options)
        except Exception as exc:
            if not connection.connected and getattr(exc, "errno", None) in (None, errno.EAGAIN):
                # What has no number is ignored; not every exception knows of one.
                setattr(exc, "errno", errno.ECONNRESET)  # noqa: B010
            raise

    def heartbeat_check(*args: Any, **options: Any) -> Any:
        refuse_lost(connection)
        return check(*args, **options)

    connection.drain_events, connection.heartbeat_check = drain_events, heartbeat_check


def refuse_lost(connection: Any) -> None:
    """Raise ConnectionResetError if the kombu *connection* is not connected any more."""
    if not connection.connected:
        raise ConnectionResetError("the connection to RabbitMQ is lost")


def is_alive(message: Any) -> bool:
    """Whether *message* can still be acknowledged: its channel has been open all the time."""
    channel = message.channel
    if getattr(channel, _REOPENED, False) or getattr(channel, "closed", False):
        return False
    if not getattr(channel, "is_open", True):
        return False
    transport = getattr(getattr(channel, "connection", None), "transport", None)
    sock = getattr(transport, "sock", None)
    return sock is None or not _has_ended(sock, transport, channel.channel_id)


def has_arrived(connection: Any) -> bool:
    """Whether there is something to read on the py-amqp *connection*, or it has ended."""
    sock = connection.sock
    return (hasattr(sock, "pending") and sock.pending() > 0) or _peek(sock, 1) is not None


def _has_ended(sock: Any, transport: Any, channel_id: int) -> bool:
    """Whether *sock* is closed, or has received that its connection or channel is.

    Where the loop does not read for a while (a pool of greenlets is full, a body runs in the loop)
    that may lie there for long.
    """
    arrived = _peek(sock, _LOOK)
    if not arrived:
        return arrived is not None
    if hasattr(sock, "pending"):  # over TLS only the connection itself can read it
        return False
    return _closes(bytes(getattr(transport, "_read_buffer", b"")) + arrived, channel_id)


def _peek(sock: Any, size: int) -> bytes | None:
    """The first *size* bytes that wait to be read; none if *sock* has ended, None if none do."""
    # Those of gevent and eventlet would wait.
    plain = getattr(sock, "fd", None) or getattr(sock, "_sock", sock)
    try:
        if plain.gettimeout() and not is_readable(plain):
            return None
        # An SSLSocket's own takes no flags.
        return _socket.socket.recv(plain, size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except (OSError, ValueError):  # it is closed here
        return b""


def is_readable(sock: Any, seconds: float = 0.0) -> bool:
    """Whether there is something to read on *sock*, or will be within so many *seconds*."""
    if seconds and not hasattr(select, "poll"):  # others go on; its select takes any descriptor
        return bool(select.select([sock], [], [], seconds)[0])
    poll = _select().poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _select() -> Any:
    """The standard library's. From eventlet's poll is removed, and its select lets one greenlet at
    a time wait for a descriptor: a mere look would end the worker's loop, which does."""
    if hasattr(select, "poll"):
        return select
    return import_module("eventlet.patcher").original("select")


def _closes(frames: bytes, channel_id: int) -> bool:
    """Whether one of *frames*, the last of which may be cut, closes the connection or a channel."""
    at = 0
    while len(frames) - at >= 11:
        kind, channel, size = struct.unpack_from(">BHI", frames, at)
        if kind not in _KINDS:
            return False  # the first of them is being read just now
        if kind == 1 and channel in (0, channel_id) and frames[at + 7 : at + 11] in _CLOSES:
            return True
        at += size + 8
    return False


#: The header that keeps, in base64, the properties and headers of a message as they came.
UNREADABLE = "celery_resilience_unreadable"

#: The type of a frame with headers.
_HEADERS = 2
#: What it begins with: a class, a weight, and the size of the body.
_FIXED = 12
_APPLICATION_HEADERS = 0x2000


def tolerate_unreadable_properties(connection: Any) -> None:
    """Let the py-amqp *connection* deliver what it can't read as a message that says so."""
    read = connection.on_inbound_frame

    def on_frame(frame: Any) -> Any:
        try:
            return read(frame)
        except Exception:
            kind, channel, payload = frame
            if kind != _HEADERS or _can_be_read(payload):
                raise
        return read((kind, channel, _told(bytes(payload))))

    connection.on_inbound_frame = on_frame


def _can_be_read(payload: Any) -> bool:
    message: Any = Message()
    try:
        message.inbound_header(payload)
    except Exception:
        return False
    return True


def _told(payload: bytes) -> bytes:
    kept = base64.b64encode(payload[_FIXED:]).decode()
    headers: bytes = dumps("F", ({UNREADABLE: kept},))
    return payload[:_FIXED] + struct.pack(">H", _APPLICATION_HEADERS) + headers
