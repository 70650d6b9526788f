"""What the doctor looks for in RabbitMQ, as far as a client is told: it asks, and makes nothing.

Policies, and how many nodes there are, RabbitMQ tells to its management API alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from amqp.exceptions import AccessRefused

from celery_resilience.messages.headers import ASTRAY
from celery_resilience.operate.diagnosis import Check, Diagnosis, Finding

if TYPE_CHECKING:
    from celery_resilience.brokers.rabbitmq.broker import AmqpBroker

__all__ = ["RABBITMQ_CHECKS"]


def delay_is_whole(diagnosis: Diagnosis) -> Iterator[Finding]:
    """The exchanges and queues that retries wait in: all of them, or none yet."""
    if diagnosis.driver != "amqp":
        return
    absent = _broker(diagnosis).absent()
    if absent:
        yield Finding(
            "delay_is_broken",
            f"deleted, while others of what retries wait in are there: {', '.join(absent)}",
            "retries that wait do not come back into their queues, or too late",
            "workers of ours make it again within about a minute: let one run. What lay in a queue "
            "that was deleted is gone",
        )


def astray(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Messages whose queue and whose dead-letter queue have gone."""
    if diagnosis.driver != "amqp":
        return
    number = _broker(diagnosis).astray()
    if number:
        yield Finding(
            "astray",
            f"{number:,} message{' lies' if number == 1 else 's lie'} in {ASTRAY}",
            "the queue that each waited for was deleted, and its dead-letter queue as well",
            f"{diagnosis.command} dlq replay --dead-letter-queue {ASTRAY}, with --to-queue where "
            "the queue does not come back",
        )


def letters_can_be_read(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Dead-letter queues that lose letters to others who look at them, or with a node."""
    if diagnosis.driver != "amqp":
        return
    connection, _ = diagnosis.reached
    for queue in diagnosis.dead_letter_queues:
        try:
            facts = _broker(diagnosis).facts(queue)
        except AccessRefused as exc:
            diagnosis.unchecked.append(f"what kind of queue {queue} is: {exc}")
            continue
        if facts is None:  # there is none yet, or RabbitMQ does not tell
            continue
        if facts.type == "quorum" and facts.delivery_limit >= 0:
            diagnosis.notes.append(
                f"{queue} is a quorum queue with a delivery limit of {facts.delivery_limit}: dlq "
                "writes a letter anew before that is reached, but what other programs look at so "
                "often, such as the management page, RabbitMQ destroys. A policy may say otherwise"
            )
        if facts.type != "classic":
            continue
        several = connection.alt[1:] or diagnosis.app.conf.task_default_queue_type == "quorum"
        if not several:
            diagnosis.unchecked.append(
                f"whether RabbitMQ is a cluster: {queue} is classic and would go with its node"
            )
            continue
        yield Finding(
            "letters_on_one_node",
            f"{queue} is a classic queue, and RabbitMQ seems to be a cluster: broker_url names "
            "several nodes, or task_default_queue_type is quorum",
            "it lies on one node: while that is away no letter can be written, and workers pause",
            'app.conf.resilience_dead_letter_queue_arguments = {"x-queue-type": "quorum"}; replay '
            "what lies there and delete the queue: the next worker makes it again",
        )


def _broker(diagnosis: Diagnosis) -> AmqpBroker:
    return cast("AmqpBroker", diagnosis.reached[1])


RABBITMQ_CHECKS: tuple[Check, ...] = (delay_is_whole, astray, letters_can_be_read)
