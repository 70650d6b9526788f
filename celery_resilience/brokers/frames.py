"""RabbitMQ: messages whose properties py-amqp can't read, such as an id that is no UTF-8.

It raises that into the worker's loop, which ends the worker, and the next one that is given the
message, and so on.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from amqp.basic_message import Message
from amqp.serialization import dumps

__all__ = ["UNREADABLE", "read_on"]

#: The header that keeps, in base64, the properties and headers of a message as they came.
UNREADABLE = "celery_resilience_unreadable"

#: The type of a frame with headers.
_HEADERS = 2
#: What it begins with: a class, a weight, and the size of the body.
_FIXED = 12
_APPLICATION_HEADERS = 0x2000


def read_on(connection: Any) -> None:
    """Let the py-amqp *connection* deliver what it can't read as a message that says so."""
    read = connection.on_inbound_frame

    def on_frame(frame: Any) -> Any:
        try:
            return read(frame)
        except Exception:
            kind, channel, payload = frame
            if kind != _HEADERS or _is_readable(payload):
                raise
        return read((kind, channel, _told(bytes(payload))))

    connection.on_inbound_frame = on_frame


def _is_readable(payload: Any) -> bool:
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
