"""What makes a message in a dead-letter queue the letter that it is: its id and its digest.

A letter of ours has an id in its header. What others have put there (RabbitMQ, a person,
another program) has none, and gets one from its content: the same message read twice is one
letter, and one that was sent round again and died again is another.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER

__all__ = ["LENGTH", "Identity", "body_digest", "digest_of", "new_id", "plain"]

#: The characters of an id: 128 bits in hex.
LENGTH = 32
#: More of RabbitMQ's own account of its deaths does not go along with a letter, in characters.
_DEATHS = 8_000


class Identity(dict[str, Any]):
    """What a message that is rewritten says of itself, for it is no longer as it came: id,
    digest, what RabbitMQ has noted about its deaths, and which body all this is about."""

    KEY = "identity"

    @classmethod
    def of(cls, id_: str, digest: str, envelope: Envelope) -> Identity:
        """That of the letter in *envelope*, as it came."""
        deaths = plain(envelope.deaths) if envelope.deaths else None
        if deaths is not None and len(json.dumps(deaths)) > _DEATHS:
            deaths = None
        told = {"id": id_, "digest": digest, "body": body_digest(envelope)}
        return cls(told if deaths is None else {**told, "deaths": deaths})

    @classmethod
    def read(cls, data: Mapping[str, Any], envelope: Envelope) -> Identity | None:
        """The one in *data*, our header; None if there is none, or it is about another body."""
        told = data.get(cls.KEY)
        if not isinstance(told, Mapping) or told.get("body") != body_digest(envelope):
            return None
        named = all(isinstance(told.get(name), str) and told[name] for name in ("id", "digest"))
        return cls(told) if named else None


def new_id() -> str:
    """The id of a new letter."""
    return secrets.token_hex(LENGTH // 2)


def body_digest(envelope: Envelope) -> str:
    """A digest of the body as it travels."""
    return hashlib.sha256(envelope.body).hexdigest()[:LENGTH]


def digest_of(envelope: Envelope) -> str:
    """A digest of all that a look does not change: type, headers, deaths, and the body.

    The counts of deliveries and the places that it lay in are not among them.
    """
    told = [
        envelope.content_type,
        envelope.content_encoding,
        {name: value for name, value in envelope.headers.items() if name != HEADER},
        envelope.headers.get(HEADER),
        envelope.deaths,
    ]
    try:
        text = json.dumps(plain(told))
    except RecursionError:
        text = repr(told)
    return hashlib.sha256(text.encode() + b"\0" + envelope.body).hexdigest()


def plain(value: Any) -> Any:
    """*value* as JSON can hold it, the same for equal ones, whatever a message brings along."""
    if isinstance(value, Mapping):
        items = [(k if isinstance(k, str) else repr(k), plain(v)) for k, v in value.items()]
        return dict(sorted(items, key=lambda item: item[0]))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return repr(value)
