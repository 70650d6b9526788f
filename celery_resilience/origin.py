"""Which queue a message came out of: kombu's transports know it at delivery, and then forget it."""

from __future__ import annotations

from typing import Any

from celery_resilience.envelope import DUE, QUEUE

__all__ = ["keep_tags", "name_the_queue", "queue_of", "readdress", "remember_tags"]

_TAGS, _KEPT = "_resilience_tags", "_resilience_kept_tags"


def remember_tags(app: Any, tags: Any) -> None:
    """Let :func:`queue_of` know the consumer *tags* of the worker that runs *app*, by queue."""
    app.__dict__[_TAGS] = tags
    app.__dict__[_KEPT] = {}


def keep_tags(app: Any) -> None:
    """Know the tags of now also when their consumer has been cancelled."""
    tags = app.__dict__.get(_TAGS, {})
    app.__dict__.setdefault(_KEPT, {}).update({tag: queue for queue, tag in tags.items()})


def queue_of(message: Any, app: Any) -> str:
    """The queue that *message* was consumed from."""
    raw = getattr(message, "_raw", None)
    info = message.delivery_info or {}
    if raw is not None and QUEUE in raw:
        return str(raw[QUEUE])
    tag = info.get("consumer_tag")
    for queue, active in app.__dict__.get(_TAGS, {}).items():
        if active == tag:
            return str(queue)
    kept = app.__dict__.get(_KEPT, {}).get(tag)
    return str(kept or info.get("routing_key") or "")


def readdress(message: Any, app: Any) -> None:
    """Let a retry that has waited in RabbitMQ look as if it had been sent to its queue.

    A task sees where its message came from, and ``Task.retry`` sends it there again.
    """
    info = message.delivery_info
    if info and info.get("exchange") == DUE:
        info.update(exchange="", routing_key=queue_of(message, app))


def name_the_queue(transport: Any) -> None:
    """Let a virtual *transport* write down which queue each message came out of.

    kombu knows it at delivery and then forgets it, and the routing key does not tell: a key may
    lead to several queues.
    """
    deliver = type(transport)._deliver

    def _deliver(message: Any, queue: str) -> Any:
        if isinstance(message, dict):
            message[QUEUE] = queue
        return deliver(transport, message, queue)

    transport._deliver = _deliver
