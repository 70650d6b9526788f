"""Which queue a message came out of: kombu's transports know it at delivery, and then forget it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from amqp.spec import Basic
from kombu.transport.virtual import Channel

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.rabbitmq.queues import DELETED
from celery_resilience.messages.envelope import Envelope, seconds_until
from celery_resilience.messages.headers import QUEUE, has_waited
from celery_resilience.transport.selection import is_ours

__all__ = [
    "delivery_of",
    "name_the_queue",
    "queue_of",
    "readdress",
    "remember_tags",
    "watch_deletions",
]

_TAGS = "_resilience_tags"
#: So many tags are known, the newest: each connection has one for each queue.
_MOST_TAGS = 10_000


class _ActiveTags(dict[str, str]):
    """kombu's consumer tags, by queue; *known* remembers them the other way round.

    What a consumer has delivered may run long after it has been cancelled, or its connection lost.
    """

    def __init__(self, known: dict[str, str]) -> None:
        super().__init__()
        self._known = known

    def __setitem__(self, queue: str, tag: str) -> None:
        super().__setitem__(queue, tag)
        self._known[tag] = queue
        if len(self._known) > _MOST_TAGS:
            del self._known[next(iter(self._known))]


def remember_tags(app: Any, consumer: Any) -> None:
    """Let :func:`queue_of` know the tags under which kombu's *consumer*, of the worker that runs
    *app*, consumes or is about to consume."""
    tags = _ActiveTags(app.__dict__.setdefault(_TAGS, {}))
    for queue, tag in consumer._active_tags.items():
        tags[queue] = tag
    consumer._active_tags = tags


def watch_deletions(channel: Any) -> None:
    """Mark the messages that RabbitMQ will not deliver again to the consumers on *channel*: it
    has cancelled them, because it has deleted their queue and all that was in it.

    Celery takes that for the loss of its connection, after which everything comes back.
    """
    cancelled = channel._callbacks[Basic.Cancel]

    def noticing(consumer_tag: str) -> None:
        channel.__dict__.setdefault(DELETED, set()).add(consumer_tag)
        cancelled(consumer_tag)

    channel._callbacks[Basic.Cancel] = noticing


def queue_of(message: Any, app: Any) -> str:
    """The queue that *message* was consumed from."""
    raw = getattr(message, "_raw", None)
    info = message.delivery_info or {}
    if raw is not None and QUEUE in raw:
        return str(raw[QUEUE])
    queue = app.__dict__.get(_TAGS, {}).get(info.get("consumer_tag"))
    return str(queue or info.get("routing_key") or "")


def delivery_of(
    app: Any, message: Any, ack: Callable[[], None], subject: str, worker: str, **more: Any
) -> Delivery:
    """What the *worker* of *app* was given with *message*, to be settled; *more* are other fields
    of the delivery."""
    name = queue_of(message, app)
    queue = app.amqp.queues.get(name)
    envelope = Envelope.received(message, name)
    return Delivery(
        message, envelope, ack, subject=subject, worker=worker,
        no_ack=bool(getattr(queue, "no_ack", False)),
        volatile=not hasattr(message, "_raw") and _is_volatile(envelope, queue),
        **more,
    )  # fmt: skip


#: Arguments of a queue that may make RabbitMQ drop what comes back into it.
_DROPPING = {"x-expires", "x-message-ttl", "x-max-length", "x-max-length-bytes"}


def _is_volatile(envelope: Envelope, queue: Any) -> bool:
    """Whether RabbitMQ may not deliver it again after a connection, or RabbitMQ itself, was lost.

    It does not tell a client whether it was restarted, nor whether a queue was made again.
    """
    arguments = dict(getattr(queue, "queue_arguments", None) or {})
    expires = envelope.headers.get("expires")
    left = seconds_until(expires, time.time()) if isinstance(expires, str) else None
    return bool(
        getattr(queue, "auto_delete", False)
        or getattr(queue, "exclusive", False)
        or not getattr(queue, "durable", True)
        or _DROPPING.intersection(arguments)
        or any(getattr(queue, name, None) for name in ("expires", "message_ttl", "max_length"))
        or (left is not None and left <= 0)
        or (
            envelope.properties.get("delivery_mode") != 2
            and arguments.get("x-queue-type") not in ("quorum", "stream")
        )
    )


def readdress(message: Any, app: Any) -> None:
    """Let a retry that has waited in RabbitMQ look as if it had been sent to its queue.

    A task sees where its message came from, and ``Task.retry`` sends it there again.
    """
    info = message.delivery_info
    if info and has_waited(info.get("exchange")):
        info.update(exchange="", routing_key=queue_of(message, app))


def name_the_queue(connection: Any) -> None:
    """Let the virtual transport of *connection* record which queue each message came from.

    kombu knows it at delivery and then forgets it, and the routing key does not tell: a key may
    lead to several queues.
    """
    transport, ours = connection.transport, is_ours(connection)
    deliver = type(transport)._deliver

    def _deliver(message: Any, queue: str) -> Any:
        if isinstance(message, dict):
            message[QUEUE] = queue
        try:
            return deliver(transport, message, queue)
        except Exception:
            # Our own transport has kept what it received, byte for byte.
            if ours or not _is_encoded_wrongly(message):
                raise
        # kombu would raise that into the worker's loop; what it need not decode it delivers.
        message["properties"]["body_encoding"] = None
        return deliver(transport, message, queue)

    transport._deliver = _deliver


def _is_encoded_wrongly(message: Any) -> bool:
    """Whether kombu can make no message of it because it can't take the body out of its code."""
    properties = message.get("properties") if isinstance(message, dict) else None
    if not isinstance(properties, dict) or not properties.get("body_encoding"):
        return False
    try:
        Channel.codecs[properties["body_encoding"]].decode(message.get("body"))
    except Exception:
        return True
    return False
