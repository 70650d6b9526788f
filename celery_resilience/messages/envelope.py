"""A message as it was received: what is copied, kept in a dead letter, and replayed.

An :class:`Envelope` holds the body as it travelled (still compressed) and never decodes it, but
for one case: protocol 1 keeps ``retries`` and ``eta`` inside the body, so a retry has to open it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import serialization as _serialization
from kombu.compression import compress, decompress
from kombu.utils.json import dumps

from celery_resilience.messages.headers import BROKERS_OWN, DEATHS, HEADER, NOT_PROPERTIES, without

# The stubs miss its registry.
serialization: Any = _serialization

__all__ = [
    "HARMLESS",
    "Envelope",
    "encoded",
    "seconds_until",
]

#: Bodies that are opened to be shown. A pickle would run what is in it, and a dead letter may be
#: about a worker's refusal to do that.
HARMLESS = frozenset({"application/json", "application/x-msgpack", "application/x-yaml"})


@dataclass(frozen=True)
class Envelope:
    """A task message between two deliveries."""

    #: The body as it travelled, compressed if the sender compressed it.
    body: bytes
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]
    #: ``priority``, ``correlation_id``, ``reply_to``, ``delivery_mode`` and the like.
    properties: Mapping[str, Any] = field(default_factory=dict)
    #: The queue that it was received from.
    queue: str = ""
    #: Where its sender had addressed it to, for a person.
    exchange: str = ""
    routing_key: str = ""
    #: Where RabbitMQ has dead-lettered it before, as it came; no copy takes that along.
    deaths: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def received(cls, message: Any, queue: str) -> Envelope:
        """The envelope of a kombu *message* that came out of *queue*."""
        raw = getattr(message, "_raw", None)
        if raw is not None:
            return cls.from_wire(raw, queue)
        headers = dict(message.headers or {})
        body = encoded(message.body)
        compression = headers.get("compression")
        if compression and not message.errors:
            # kombu has decompressed the body but left the header in its place: sent on like
            # that, it could not be read.
            body = compress(body, compression)[0]
        info = message.delivery_info or {}
        return cls(
            body=body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=without(headers, BROKERS_OWN),
            properties=without(message.properties or {}, NOT_PROPERTIES),
            queue=queue,
            exchange=str(info.get("exchange") or ""),
            routing_key=str(info.get("routing_key") or ""),
            deaths=_deaths(headers),
        )

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any], queue: str) -> Envelope:
        """The envelope of a kombu virtual transport's payload, as it lies in the broker."""
        properties = _mapping(raw.get("properties"))
        body = encoded(raw.get("body"))
        if properties.get("body_encoding") == "base64" and isinstance(raw.get("body"), str):
            with suppress(ValueError):  # no base64 after all: it stays what it is
                body = base64.b64decode(body)
        info = _mapping(properties.get("delivery_info"))
        headers = _mapping(raw.get("headers"))
        return cls(
            body=body,
            content_type=raw.get("content-type"),
            content_encoding=raw.get("content-encoding"),
            headers=without(headers, BROKERS_OWN),
            properties=without(properties, NOT_PROPERTIES),
            queue=queue,
            exchange=str(info.get("exchange") or ""),
            routing_key=str(info.get("routing_key") or ""),
            deaths=_deaths(headers),
        )

    def to_wire(self, tag: str, queue: str) -> dict[str, Any]:
        """A payload for kombu's virtual transports, addressed to *queue* and no other.

        The anonymous exchange keeps a restored message from being routed a second time.
        """
        return {
            "body": base64.b64encode(self.body).decode(),
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": dict(self.headers),
            "properties": {
                **self.properties,
                "body_encoding": "base64",
                "delivery_tag": tag,
                "delivery_info": {"exchange": "", "routing_key": queue},
            },
        }

    def with_header(self, text: str | None) -> Envelope:
        """The same message with our header set to *text*, or without it for None."""
        headers = without(self.headers, frozenset({HEADER}))
        if text is not None:
            headers[HEADER] = text
        return replace(self, headers=headers)

    # What the task message says, wherever its protocol keeps it.

    @property
    def protocol(self) -> int:
        """1 or 2: where this message keeps the task's name, id, retries and eta."""
        return 2 if "task" in self.headers else 1

    def fields(self) -> Mapping[str, Any]:
        """The task's own fields: the headers in protocol 2, the decoded body in protocol 1.

        Raises whatever the serializer raises on a body that it can't read.
        """
        return self.headers if self.protocol == 2 else self._opened()

    def with_fields(self, **fields: Any) -> Envelope:
        """The same message with some of its task fields set: ``retries``, ``eta``, ``expires``."""
        if self.protocol == 2:
            return replace(self, headers={**self.headers, **fields})
        return self._closed({**self._opened(), **fields})

    def due(self, at: float | None) -> Envelope:
        """The same message, not to be run before *at* (seconds since the epoch; None: at once)."""
        eta = None if at is None else datetime.fromtimestamp(at, timezone.utc).isoformat()
        if self.protocol == 2:
            return self.with_fields(eta=eta)
        return self.with_fields(eta=eta, utc=True)

    def due_in(self, delay: float) -> Envelope:
        """The same message, to be run *delay* seconds from now; at once for 0."""
        return self.due(time.time() + delay if delay > 0 else None)

    def _decoded(self) -> Any:
        body = self.body
        if compression := self.headers.get("compression"):
            body = decompress(body, compression)
        return serialization.loads(
            body, self.content_type, self.content_encoding, accept={self.content_type}
        )

    def _opened(self) -> dict[str, Any]:
        fields = self._decoded()
        if not isinstance(fields, dict):
            raise TypeError(f"a protocol 1 body is a mapping, got {type(fields).__name__}")
        return fields

    def _closed(self, fields: Mapping[str, Any]) -> Envelope:
        serializer = serialization.registry.type_to_name[self.content_type]
        return self.with_body(encoded(serialization.dumps(fields, serializer=serializer)[2]))

    def with_body(self, body: bytes) -> Envelope:
        """The same message with another *body*, serialized as this one is and not compressed."""
        if compression := self.headers.get("compression"):
            body = compress(body, compression)[0]
        return replace(self, body=body)

    # For a person, and for a filter: nothing is opened that could run code.

    def text_field(self, name: str) -> str:
        """The task's own field *name* where it is a text; empty where it can't be read."""
        if self.protocol == 1 and self.content_type not in HARMLESS:
            return ""
        try:
            value = self.fields().get(name)
        except Exception:  # an undecodable body is what many a dead letter is about
            return ""
        return value if isinstance(value, str) else ""

    def masked_arguments(self) -> str:
        """The arguments as the sender let them be shown: what it masked stays masked."""
        args, kwargs = self.text_field("argsrepr"), self.text_field("kwargsrepr")
        return f"args={args} kwargs={kwargs}" if args or kwargs else ""

    def decoded_arguments(
        self,
    ) -> tuple[Sequence[Any], Mapping[str, Any], Mapping[str, Any]] | None:
        """Positional and keyword arguments, and what is embedded with them (chain, chord,
        callbacks); None where that can't be read, or not without risk."""
        if self.content_type not in HARMLESS:
            return None
        try:
            inside = self._decoded()
            if self.protocol == 1:
                args, kwargs, embedded = inside.get("args"), inside.get("kwargs"), inside
            else:
                args, kwargs, embedded = inside
        except Exception:
            return None
        args, kwargs, embedded = args or (), kwargs or {}, embedded or {}
        if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
            return None
        return args, kwargs, embedded if isinstance(embedded, Mapping) else {}

    # As text, for a place that takes only text.

    def to_json(self) -> dict[str, Any]:
        """A dict that JSON can hold: keys as the fields, the body in base64."""
        return {
            "body": base64.b64encode(self.body).decode(),
            "content_type": self.content_type,
            "content_encoding": self.content_encoding,
            "headers": json.loads(json.dumps(dict(self.headers), default=str, skipkeys=True)),
            "properties": json.loads(json.dumps(dict(self.properties), default=str, skipkeys=True)),
            "queue": self.queue,
            "exchange": self.exchange,
            "routing_key": self.routing_key,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Envelope:
        """The envelope that :meth:`to_json` wrote; raises for anything else."""
        return cls(**{**data, "body": base64.b64decode(data["body"], validate=True)})

    def headers_size(self) -> int:
        """About how many bytes the headers and the properties take on their way."""
        told = {**self.properties, **self.headers}
        text = json.dumps(told, default=str, ensure_ascii=False, skipkeys=True)
        return len(text.encode("utf-8", "replace"))


def encoded(body: Any) -> bytes:
    """Bytes, whatever a transport calls a body."""
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogateescape")
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    # On Redis it may be of any type of JSON's: bytes() would make a number that many NULs.
    return dumps(body).encode()


def seconds_until(moment: Any, now: float | None = None, zone: Any = None) -> float | None:
    """Seconds from *now* until *moment*, a message's ``eta`` or ``expires``; None if it has none.

    None too where it can't be read: Celery refuses such a message by itself.
    """
    if not moment:
        return None
    try:
        aware: Any = maybe_make_aware(maybe_iso8601(moment), zone)  # type: ignore[arg-type]
        return float(aware.timestamp() - (time.time() if now is None else now))
    except Exception:
        return None


def _deaths(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: headers[name] for name in DEATHS if name in headers}


def _mapping(value: Any) -> Mapping[str, Any]:
    """*value*, or an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}
