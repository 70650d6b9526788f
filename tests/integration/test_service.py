"""A RabbitMQ that runs as people run it, in a container: ``RABBITMQ_SERVICE`` is its URL.

The other tests start and kill brokers of their own. This one asks whether a worker, a retry, a dead
letter and its replay get on with a stock one; CI's workflow has one as a service.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kombu import Connection

from celery_resilience.operate.dead_letters import DeadLetters, ReplayResult
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

APP = "tests.apps.shop"
URL = os.environ.get("RABBITMQ_SERVICE", "")


@pytest.fixture
def service(redis_broker: Broker) -> Iterator[Broker]:
    """The service as a broker, without what an earlier run has left there."""
    if not URL:
        pytest.skip("RABBITMQ_SERVICE names no RabbitMQ")
    _delete_queues()
    yield replace(redis_broker, name="rabbitmq-quorum", broker_url=URL, queue_type="quorum")
    _delete_queues()


def _delete_queues() -> None:
    with Connection(URL) as connection:
        for queue in ("shop", "other", "dead_letter"):
            connection.default_channel.queue_delete(queue)


def test_task_is_retried_dead_lettered_and_replayed(
    service: Broker, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    client = Client(service, tmp_path / "record")
    start_worker(APP, service, env=client.env)
    assert client.value(client.send("flaky", "flaky", 2)) == "flaky done"
    assert client.executions()["flaky"] == 3
    refused = client.send("refused", "refused")
    eventually(lambda: client.count("dead_letter") == 1, message="it is a dead letter")
    with DeadLetters(client.app) as letters:
        (replayed,) = letters.replay(refused.id)
    assert replayed.result is ReplayResult.PUBLISHED
    eventually(lambda: client.executions()["refused"] == 2, message="its replay runs")
    eventually(lambda: client.count("dead_letter") == 1, message="it is a dead letter again")
    client.close()
