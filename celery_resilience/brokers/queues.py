"""RabbitMQ: which queues there are, and making those that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu import Queue

__all__ = ["DELETED", "make", "size"]

#: Where a channel says, within this process, which of its consumers have lost their queues.
DELETED = "resilience_deleted"

#: A virtual host may have another default, one that counts deliveries.
_CLASSIC = {"x-queue-type": "classic"}


def size(connection: Any, queue: str) -> int | None:
    """How many messages of *queue* wait to be delivered; None if there is no such queue."""
    channel = connection.channel()
    try:
        answer = channel.queue_declare(queue, passive=True)
    except channel.connection.channel_errors as exc:
        if getattr(exc, "reply_code", None) == 404:
            return None
        raise
    channel.close()
    return int(answer.message_count)


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
    version = str(connection.connection.server_properties.get("version", "0"))
    if arguments.get("x-queue-type") == "quorum" and int(version.split(".")[0] or 0) >= 4:
        arguments.setdefault("x-delivery-limit", -1)
    return arguments
