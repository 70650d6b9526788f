"""Which broker can do what only some can; that their methods fit is mypy's to say."""

from __future__ import annotations

from typing import Any

import pytest

from celery_resilience.brokers import base
from celery_resilience.brokers.plain import PlainBroker
from celery_resilience.brokers.rabbitmq.broker import AmqpBroker
from celery_resilience.brokers.redis.broker import RedisBroker

REDIS = {"Leasing", "ListsScheduled", "RecordsLetterQueues", "RecordsStarts"}
RABBITMQ = {
    "ChecksConnection", "CountsDelayed", "HangsUp", "Prepares", "RecordsLetterQueues",
    "RedeliversOnDisconnect",
}  # fmt: skip


def redis_fits(broker: RedisBroker) -> tuple[base.Leasing, base.ListsScheduled, base.RecordsStarts]:
    return broker, broker, broker


def rabbitmq_fits(
    broker: AmqpBroker,
) -> tuple[base.RedeliversOnDisconnect, base.CountsDelayed, base.Prepares]:
    return broker, broker, broker


@pytest.mark.parametrize(
    ("kind", "capabilities"),
    [(RedisBroker, REDIS), (AmqpBroker, RABBITMQ), (PlainBroker, set[str]())],
)
def test_capabilities_of_a_broker(kind: Any, capabilities: set[str]) -> None:
    broker = object.__new__(kind)
    broker.__dict__.update(dict.fromkeys(("leases", "waiting")) if kind is RedisBroker else {})
    assert {name for name in REDIS | RABBITMQ if isinstance(broker, getattr(base, name))} == (
        capabilities
    )
