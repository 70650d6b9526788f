"""RabbitMQ closes the connection, not the channel alone: that is what is told, and nothing else.

py-amqp takes a channel its connection away in that moment, before it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import InternalError

from celery_resilience.brokers.rabbitmq import queues
from celery_resilience.brokers.rabbitmq.browse import QueueBrowser
from celery_resilience.brokers.rabbitmq.figures import figures
from celery_resilience.brokers.rabbitmq.topology import make_at_once
from celery_resilience.worker.pause import how_to_fix


class Channel:
    """One whose every question is answered by the end of its connection."""

    def __init__(self) -> None:
        self.connection: Any = SimpleNamespace(channel_errors=())

    def exchange_declare(self, *args: Any, **options: Any) -> None:
        pass

    def queue_declare(self, *args: Any, **options: Any) -> Any:
        self.connection = None
        raise InternalError("", (50, 10), "Queue.declare", 541)


CONNECTION = SimpleNamespace(channel=Channel)
BROWSER: Any = SimpleNamespace(
    _queue="shop", _publisher=SimpleNamespace(link=SimpleNamespace(connection=CONNECTION))
)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: queues.size(CONNECTION, "shop"),
        lambda: queues._current(CONNECTION, "shop", "x-queue-type", {}),
        lambda: make_at_once(CONNECTION, set(), ["shop"], 1),
        lambda: figures(CONNECTION, "shop", "mark"),
        lambda: QueueBrowser._leave_a_mark(BROWSER),
    ],
)
def test_cause_of_a_lost_connection_is_told(ask: Callable[[], object]) -> None:
    with pytest.raises(InternalError):
        ask()


def test_remedy_of_a_lost_connection_is_told() -> None:
    said = how_to_fix(InternalError("INTERNAL_ERROR", (0, 0), "", 541))
    assert "restart that node" in said
