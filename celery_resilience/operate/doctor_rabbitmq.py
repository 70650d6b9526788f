"""The doctor's checks of RabbitMQ, as far as a client can see: it declares nothing.

Policies and the number of nodes are known to RabbitMQ's management API alone.
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
    absent = _broker(diagnosis).absent()
    if absent:
        yield Finding(
            "delay_is_broken",
            f"missing, while the rest of the delay exists: {', '.join(absent)}",
            "scheduled retries return to their queues late or never",
            "start a worker with celery_resilience: it declares them within about a minute. "
            "Messages in a queue that was deleted are gone",
        )


def astray(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Messages whose queue and whose dead-letter queue have gone."""
    number = _broker(diagnosis).astray()
    if number:
        yield Finding(
            "astray",
            f"{number:,} message{' is' if number == 1 else 's are'} in {ASTRAY}",
            "their queue was deleted while they waited, and so was their dead-letter queue",
            f"{diagnosis.command} dlq replay --dead-letter-queue {ASTRAY}, with --to-queue where "
            "the queue does not come back",
        )


def letters_can_be_read(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Dead-letter queues that may lose letters to other readers, or with a node."""
    connection, _ = diagnosis.reached
    for queue in diagnosis.dead_letter_queues:
        try:
            facts = _broker(diagnosis).facts(queue)
        except AccessRefused as exc:
            diagnosis.unchecked.append(f"the type of {queue}: {exc}")
            continue
        if facts is None:  # there is none yet, or its type is unknown
            continue
        if facts.type == "quorum" and facts.delivery_limit >= 0:
            diagnosis.notes.append(
                f"{queue} is a quorum queue with a delivery limit of {facts.delivery_limit}: dlq "
                "rewrites a letter before that is reached; what others, such as the management "
                "page, read so often RabbitMQ destroys. A policy may say otherwise"
            )
        if facts.type != "classic":
            continue
        several = connection.alt[1:] or diagnosis.app.conf.task_default_queue_type == "quorum"
        if not several:
            diagnosis.unchecked.append(
                f"whether RabbitMQ is a cluster: {queue} is classic and would be lost with its node"
            )
            continue
        yield Finding(
            "letters_on_one_node",
            f"{queue} is a classic queue, and RabbitMQ seems to be a cluster: broker_url names "
            "several nodes, or task_default_queue_type is quorum",
            "while its node is down no letter can be written, and workers pause",
            'app.conf.resilience_dead_letter_queue_arguments = {"x-queue-type": "quorum"}; replay '
            "what lies there and delete the queue: the next worker declares it again",
        )


def _broker(diagnosis: Diagnosis) -> AmqpBroker:
    return cast("AmqpBroker", diagnosis.reached[1])


RABBITMQ_CHECKS: tuple[Check, ...] = (delay_is_whole, astray, letters_can_be_read)
