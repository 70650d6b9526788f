"""RabbitMQ: which queues there are, and making those that are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import ChannelError
from kombu import Queue

from celery_resilience.brokers.base import LONGEST_NAME

__all__ = ["DELETED", "QueueFacts", "facts", "fits", "leave", "make", "size"]

#: Where a channel says, within this process, which of its consumers have lost their queues.
DELETED = "resilience_deleted"

#: A virtual host may have another default, one that counts deliveries.
_CLASSIC = {"x-queue-type": "classic"}


def size(connection: Any, queue: str) -> int | None:
    """How many messages of *queue* wait to be delivered; None if there is no such queue."""
    channel = connection.channel()
    try:
        answer = channel.queue_declare(queue, passive=True)
    except ChannelError as exc:
        leave(channel)
        if getattr(exc, "reply_code", None) == 404:
            return None
        raise
    channel.close()
    return int(answer.message_count)


def leave(channel: Any) -> None:
    """Close *channel*, which RabbitMQ has closed: py-amqp has opened it again, and there is only so
    many of them."""
    with suppress(Exception):
        channel.close()


def fits(name: str) -> bool:
    """Whether RabbitMQ can name a queue so."""
    return len(name.encode()) <= LONGEST_NAME


@dataclass(frozen=True)
class QueueFacts:
    """What a queue was declared as; a policy may limit it beyond that, which is unknown here."""

    #: ``classic``, ``quorum`` or ``stream``.
    type: str
    #: How often a message may come back; -1: as often as it likes, or it is not counted.
    delivery_limit: int


def facts(connection: Any, queue: str) -> QueueFacts | None:
    """What *queue* was declared as; None if it is not there, or if that can't be known.

    RabbitMQ tells it where it refuses to declare it as something else.
    """
    if size(connection, queue) is None:
        return None
    kind = _current(connection, queue, "x-queue-type", {"x-queue-type": "stream"})
    if kind not in ("classic", "quorum"):
        # Before 4.0 a classic queue may be one that says nothing.
        return QueueFacts("classic", -1) if kind == "none" else None
    if kind == "classic":
        return QueueFacts(kind, -1)
    asked = {"x-queue-type": "quorum", "x-delivery-limit": -2}
    limit = _current(connection, queue, "x-delivery-limit", asked)
    if limit == "none":
        return QueueFacts(kind, 20 if _major(connection) >= 4 else -1)
    return QueueFacts(kind, int(limit)) if limit.lstrip("-").isdigit() else None


def _current(connection: Any, queue: str, argument: str, asked: Mapping[str, Any]) -> str:
    """The value of *argument* that *queue* has, by what is said when *asked* are refused."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=dict(asked))
    except ChannelError as exc:
        leave(channel)
        found = re.search(
            rf"inequivalent arg '{argument}'.* current is (?:the value )?(.*)", str(exc)
        )
        return found[1].strip("'\"").split("'")[0] if found else ""
    channel.close()
    return ""


def _major(connection: Any) -> int:
    version = str(connection.connection.server_properties.get("version", "0"))
    return int(version.split(".")[0] or 0)


def make(connection: Any, queue: str, arguments: Mapping[str, Any] | None) -> None:
    """Make *queue*, durable, unless it is there; an existing one is taken as it is."""
    if size(connection, queue) is not None:
        return
    with connection.channel() as channel:
        Queue(
            queue,
            exchange=None,
            durable=True,
            queue_arguments=_without_a_limit(connection, dict(arguments or _CLASSIC)),
        ).bind(channel).queue_declare()


def _without_a_limit(connection: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """From 4.0 on a quorum queue destroys what was delivered 20 times; a look is a delivery."""
    if arguments.get("x-queue-type") == "quorum" and _major(connection) >= 4:
        arguments.setdefault("x-delivery-limit", -1)
    return arguments
