"""Whose a message is at the moment that it is settled, and whether a copy is written then.

A worker settles what it was given a while ago, and meanwhile the broker may have died, forgotten
it, or given it to another worker. Where that can't be known a copy is written: in doubt a task runs
twice, and is not lost.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from celery_resilience.brokers.rabbitmq.pyamqp import is_alive
from celery_resilience.brokers.rabbitmq.queues import DELETED

if TYPE_CHECKING:
    from celery_resilience.brokers.base import Delivery

__all__ = ["Ownership", "after_script", "is_alive", "on_rabbitmq", "on_redis"]


class Ownership(Enum):
    """Whose it is; its value is what the log says."""

    HELD = "this worker holds it"
    ACKED = "it was acknowledged before its body ran"
    NEVER_HELD = "its queue is consumed without acknowledgements (no_ack)"
    FORGOTTEN = "Redis has forgotten that this worker held it"
    QUEUE_GONE = "its queue was deleted, and it with its queue"
    DROPPED = "its channel is closed, and RabbitMQ may not deliver it again"
    PUT_BACK = (
        "this worker no longer holds it: it was requeued, and is settled by the worker that "
        "receives it next, or an earlier try has settled it whose answer was lost"
    )
    REDELIVERED = "its channel is closed: RabbitMQ delivers it again"

    @property
    def is_ours(self) -> bool:
        """Whether a copy is written; if not, another worker has the message or will have it."""
        return self not in (Ownership.PUT_BACK, Ownership.REDELIVERED)

    @property
    def has_original(self) -> bool:
        """Whether there is an original in the broker that the copy takes the place of."""
        return self is Ownership.HELD

    @property
    def is_unusual(self) -> bool:
        """Whether an operator wants to know that a copy was written."""
        return self in (Ownership.FORGOTTEN, Ownership.DROPPED)


def on_redis(delivery: Delivery) -> Ownership:
    """What the worker knows itself; whether it still holds what it has held only Redis does."""
    if delivery.acked_early:
        return Ownership.ACKED
    message = delivery.message
    channel = message.channel
    if getattr(channel, "lease_owner", None) is not None:
        never = getattr(message, "take", None) is None
    else:
        never = not getattr(channel, "ack_emulation", True)
    return Ownership.NEVER_HELD if never or delivery.no_ack else Ownership.HELD


def after_script(answer: int) -> Ownership:
    """What a script has answered about a message that the worker has held."""
    return (Ownership.PUT_BACK, Ownership.HELD, Ownership.FORGOTTEN)[answer]


def on_rabbitmq(delivery: Delivery) -> Ownership:
    """RabbitMQ takes back what was delivered on a channel that is closed, if it still can."""
    message = delivery.message
    if delivery.acked_early:
        return Ownership.ACKED
    if delivery.no_ack:
        return Ownership.NEVER_HELD
    deleted = getattr(message.channel, DELETED, ())
    if deleted and message.delivery_info["consumer_tag"] in deleted:
        return Ownership.QUEUE_GONE
    if message.channel is not None and is_alive(message):
        return Ownership.HELD
    return Ownership.DROPPED if delivery.volatile else Ownership.REDELIVERED
