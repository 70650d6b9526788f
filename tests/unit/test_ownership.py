"""Whose a message is: each answer there is, and what the worker does for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Queue

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.ownership import Ownership, after_script, on_rabbitmq, on_redis
from celery_resilience.brokers.rabbitmq.queues import DELETED
from celery_resilience.messages.envelope import Envelope
from celery_resilience.worker.source_queue import delivery_of

#: Those that somebody else has, or will have: no copy is written.
OTHERS = {Ownership.PUT_BACK, Ownership.REDELIVERED}
PAST = "2020-01-01T00:00:00+00:00"


def delivery(message: Any, **options: Any) -> Delivery:
    return Delivery(message, Envelope(b"", None, None, {}), lambda: None, **options)


def on_channel(**channel: Any) -> Any:
    return SimpleNamespace(
        channel=SimpleNamespace(**channel), delivery_info={"consumer_tag": "c"}, take=7
    )


@pytest.mark.parametrize("ownership", Ownership)
def test_copy_is_written_unless_another_has_the_original(ownership: Ownership) -> None:
    assert ownership.is_ours == (ownership not in OTHERS)
    assert ownership.has_original == (ownership is Ownership.HELD)
    assert ownership.value


def test_ownership_on_redis() -> None:
    held = delivery(on_channel(lease_owner=object()))
    assert on_redis(held) is Ownership.HELD
    assert on_redis(replace(held, acked_early=True)) is Ownership.ACKED
    assert on_redis(replace(held, no_ack=True)) is Ownership.NEVER_HELD
    untaken = on_channel(lease_owner=object())
    untaken.take = None
    assert on_redis(delivery(untaken)) is Ownership.NEVER_HELD
    kombus = on_channel(ack_emulation=True)
    assert on_redis(delivery(kombus)) is Ownership.HELD
    kombus.channel.ack_emulation = False
    assert on_redis(delivery(kombus)) is Ownership.NEVER_HELD


def test_scripts_answer_is_understood() -> None:
    assert [after_script(answer) for answer in (0, 1, 2)] == [
        Ownership.PUT_BACK, Ownership.HELD, Ownership.FORGOTTEN,
    ]  # fmt: skip


def test_ownership_on_rabbitmq() -> None:
    held, closed = delivery(on_channel(is_open=True)), delivery(on_channel(is_open=False))
    assert on_rabbitmq(held) is Ownership.HELD
    assert on_rabbitmq(replace(closed, acked_early=True)) is Ownership.ACKED
    assert on_rabbitmq(replace(closed, no_ack=True)) is Ownership.NEVER_HELD
    assert on_rabbitmq(closed) is Ownership.REDELIVERED
    assert on_rabbitmq(replace(closed, volatile=True)) is Ownership.DROPPED
    gone = delivery(on_channel(is_open=False, **{DELETED: {"c"}}))
    assert on_rabbitmq(gone) is Ownership.QUEUE_GONE


@pytest.mark.parametrize(
    ("queue", "properties", "headers", "volatile"),
    [
        ({}, {}, {}, False),
        ({}, {"delivery_mode": 1}, {}, True),
        ({"queue_arguments": {"x-queue-type": "quorum"}}, {"delivery_mode": 1}, {}, False),
        ({"auto_delete": True}, {}, {}, True),
        ({"exclusive": True}, {}, {}, True),
        ({"durable": False}, {}, {}, True),
        ({"queue_arguments": {"x-max-length": 5}}, {}, {}, True),
        ({"message_ttl": 5}, {}, {}, True),
        ({}, {}, {"expires": PAST}, True),
        ({}, {}, {"expires": "2999-01-01T00:00:00+00:00"}, False),
        ({}, {}, {"expires": 7}, False),
    ],
)
def test_message_that_rabbitmq_may_not_deliver_again(
    queue: Any, properties: Any, headers: Any, volatile: bool
) -> None:
    app = SimpleNamespace(amqp=SimpleNamespace(queues={"work": Queue("work", **queue)}))
    message = SimpleNamespace(
        body=b"[]", content_type="application/json", content_encoding="utf-8",
        headers={"task": "t", "id": "1", **headers},
        properties={"delivery_mode": 2, **properties},
        delivery_info={"routing_key": "work"},
    )  # fmt: skip
    assert delivery_of(app, message, lambda: None, "t[1]", "w@1").volatile is volatile
    message._raw = {}  # of a virtual transport, as Redis' is
    assert not delivery_of(app, message, lambda: None, "t[1]", "w@1").volatile
