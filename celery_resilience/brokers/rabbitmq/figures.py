"""RabbitMQ: how many messages a queue has, and whether these are all."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import ChannelError

from celery_resilience.brokers.base import Figures
from celery_resilience.brokers.rabbitmq.queues import leave

__all__ = ["figures"]

#: How RabbitMQ says that a queue is there, and can't be asked.
_HOME_NODE = "home node"


class _Away(Exception):
    """The queue is there, and can't be asked."""


def figures(connection: Any, queue: str, mark: str) -> Figures:
    """What RabbitMQ says of *queue*: it does not count what a consumer holds, be it a command that
    reads letters, which consumes the queue *mark* too, or a worker."""
    try:
        # In this order: a reader returns its letters before it removes its mark.
        looking = _asked(connection, mark)[1]
        messages, consumers = _asked(connection, queue)
    except _Away:
        return Figures(0, "its node is down")
    if looking:
        return Figures(messages, "another command is reading letters there")
    return Figures(messages, "it is consumed" if consumers else "")


def _asked(connection: Any, queue: str) -> tuple[int, int]:
    """How many messages and consumers *queue* has, none of both if there is no such queue."""
    channel = connection.channel()
    try:
        answer = channel.queue_declare(queue, passive=True)
    except ChannelError as exc:
        leave(channel)
        if getattr(exc, "reply_code", None) != 404:
            raise
        if _HOME_NODE in str(exc):
            raise _Away from exc
        return 0, 0
    channel.close()
    return int(answer.message_count), int(answer.consumer_count)
