"""What retries need in RabbitMQ, made in one go: far away, each answer takes its time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amqp.exceptions import ChannelError

from celery_resilience.brokers.rabbitmq import delay
from celery_resilience.brokers.rabbitmq.delay import LEVELS, UNROUTABLE, level_name, word
from celery_resilience.messages.headers import DUE

__all__ = ["make_at_once"]


def make_at_once(
    connection: Any, known: set[str], queues: Iterable[str], levels: int, priority: object = None
) -> None:
    """Make the exchanges, the first *levels* and the bindings of *queues* that are not *known*.

    Where RabbitMQ refuses any of it nothing becomes known: who makes them one by one is told which.
    """
    bindings = {f"{DUE} {queue}": queue for queue in queues}
    names = [level_name(level, priority) for level in range(levels)]
    missing = {DUE, *names, *bindings} - known
    if not missing:
        return
    channel = connection.channel()
    try:
        if DUE in missing:
            _exchange(channel, UNROUTABLE)
            _exchange(channel, DUE, {"alternate-exchange": UNROUTABLE})
        for level, name in enumerate(names):
            if name in missing:
                _level(channel, level, name, level_name(level - 1, priority) if level else DUE)
        for binding, queue in bindings.items():
            if binding in missing:
                key = "*." * LEVELS + word(queue) + ".*"
                channel.queue_bind(queue, DUE, key, nowait=True)
        channel.basic_qos(0, 0, False)  # its answer comes when all of it is done
    except ChannelError:
        return
    channel.close()
    known |= missing


def _exchange(channel: Any, name: str, arguments: dict[str, str] | None = None) -> None:
    channel.exchange_declare(
        name, "topic", durable=True, auto_delete=False, nowait=True, arguments=arguments
    )


def _level(channel: Any, level: int, name: str, below: str) -> None:
    arguments = {"x-message-ttl": 2**level * 1000, "x-dead-letter-exchange": below, **delay.QUORUM}
    channel.queue_declare(name, durable=True, auto_delete=False, nowait=True, arguments=arguments)
    _exchange(channel, name)
    others = "*." * (LEVELS - 1 - level)
    channel.queue_bind(name, name, f"{others}1.#", nowait=True)
    channel.exchange_bind(below, name, f"{others}0.#", nowait=True)
