"""What the doctor looks for in RabbitMQ, as far as a client is told: it asks, and makes nothing.

A queue's arguments are asked for by declaring it as it is with others: RabbitMQ refuses, and says
what they are. Policies, and how many nodes there are, it tells to the management API alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from celery_resilience.brokers import queues
from celery_resilience.brokers.delay import UNROUTABLE, USUAL, level_name
from celery_resilience.diagnosis import Check, Diagnosis, Finding
from celery_resilience.headers import DUE
from celery_resilience.settings import Settings

__all__ = ["RABBITMQ_CHECKS"]

_CURRENT = re.compile(r"but current is (?:the value )?'?([\w-]+)'?")
#: How often RabbitMQ 4 delivers a message of a quorum queue, where nothing else is said.
_DELIVERIES = 20


def delay_is_whole(diagnosis: Diagnosis) -> Iterator[Finding]:
    """The exchanges and queues that retries wait in: all of them, or none yet."""
    if diagnosis.driver != "amqp":
        return
    connection, _ = diagnosis.reached
    levels = [level_name(level) for level in range(USUAL)]
    parts = [*((name, _has_exchange) for name in (DUE, UNROUTABLE, *levels))]
    parts += [(name, _has_queue) for name in levels]
    there = [(name, has(connection, name)) for name, has in parts]
    lacking = sorted({name for name, has in there if not has})
    if lacking and any(has for _, has in there):
        yield Finding(
            "delay_is_broken",
            f"{', '.join(lacking)}: deleted, while others of what retries wait in are there",
            "retries that wait do not come back into their queues, or too late",
            "restart one worker of each queue: what is missing is made when it connects. What lay "
            "in a queue that was deleted is gone",
        )


def letters_can_be_read(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Dead-letter queues that lose letters when they are looked at, or with a node."""
    if diagnosis.driver != "amqp":
        return
    connection, _ = diagnosis.reached
    version = str(connection.connection.server_properties.get("version", "0"))
    for queue in diagnosis.dead_letter_queues:
        if queues.size(connection, queue) is None:
            continue
        try:
            kind = _type(connection, queue)
        except AccessRefused as exc:
            diagnosis.unchecked.append(f"what kind of queue {queue} is: {exc}")
            continue
        if kind == "quorum":
            yield from _wears_out(diagnosis, queue, version)
        elif kind == "classic":
            yield from _nodes(diagnosis, queue)
        else:
            diagnosis.unchecked.append(f"what kind of queue {queue} is: RabbitMQ does not tell")


def _wears_out(diagnosis: Diagnosis, queue: str, version: str) -> Iterator[Finding]:
    if int(version.split(".")[0] or 0) >= 4 and not _is_without_limit(diagnosis, queue):
        diagnosis.notes.append(
            f"{queue} is a quorum queue with a delivery limit, by default {_DELIVERIES}: dlq "
            "writes a letter anew before that is reached, but what other programs look at so "
            "often, such as the management page, RabbitMQ destroys. A policy may say otherwise"
        )
    yield from ()


def _nodes(diagnosis: Diagnosis, queue: str) -> Iterator[Finding]:
    fix = (
        'app.conf.resilience_dead_letter_queue_arguments = {"x-queue-type": "quorum"}; replay what '
        "lies there and delete the queue: the next worker makes it again"
    )
    if diagnosis.app.conf.task_default_queue_type == "quorum" or diagnosis.reached[0].alt[1:]:
        yield Finding(
            "letters_on_one_node",
            f"{queue} is a classic queue, and RabbitMQ seems to be a cluster: broker_url names "
            "several nodes, or task_default_queue_type is quorum",
            "it lies on one node: while that is away no letter can be written, and workers pause",
            fix,
        )
        return
    diagnosis.unchecked.append(
        f"whether RabbitMQ is a cluster: {queue} is classic and would go with its node"
    )


def _has_queue(connection: Any, name: str) -> bool:
    return queues.size(connection, name) is not None


def _has_exchange(connection: Any, name: str) -> bool:
    channel = connection.channel()
    try:
        channel.exchange_declare(name, "topic", passive=True)
    except NotFound:
        return False
    channel.close()
    return True


def _type(connection: Any, queue: str) -> str:
    current = _unlike(connection, queue, {"x-queue-type": "classic"})
    return "classic" if current is None else current


def _is_without_limit(diagnosis: Diagnosis, queue: str) -> bool:
    connection, _ = diagnosis.reached
    arguments = dict(Settings.of(diagnosis.app).dead_letter_queue_arguments)
    wanted = {**arguments, "x-queue-type": "quorum", "x-delivery-limit": -1}
    return _unlike(connection, queue, wanted) is None


def _unlike(connection: Any, queue: str, arguments: dict[str, Any]) -> str | None:
    """None if *queue*, which is there, has these *arguments*; else what the first that differs
    is, or "" where RabbitMQ does not say."""
    channel = connection.channel()
    try:
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
    except PreconditionFailed as exc:
        found = _CURRENT.search(str(exc))
        return found[1] if found else ""
    channel.close()
    return None


RABBITMQ_CHECKS: tuple[Check, ...] = (delay_is_whole, letters_can_be_read)
