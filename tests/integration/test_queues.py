"""A task whose queue is taken from its worker while it runs: what is decided ends somewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
rabbitmq = pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)


@rabbitmq
def test_retry_finds_its_queue_after_the_consumer_was_cancelled(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Its routing key is not the queue's name, and nobody consumes under its tag any more."""
    start_worker(SHOP, broker, env=client.env)
    control = client.app.control
    arguments = {"queue_arguments": {"x-queue-type": broker.queue_type}}
    control.add_consumer("odd", "ex", "direct", "some.key", options=arguments, reply=True)
    gate = client.record.with_name("gate")
    client.send("waits", "w", str(gate), exchange="ex", routing_key="some.key")
    eventually(lambda: client.executions()["w"] == 1)
    control.cancel_consumer("odd", reply=True)
    gate.touch()
    eventually(lambda: client.count("odd") == 1)
    assert client.letters() == []


@rabbitmq
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_decision_outlives_the_deleted_queue(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """RabbitMQ has deleted the messages too: unlike after a lost connection, none comes back."""
    worker = start_worker(SHOP, broker, env=client.env, pool=pool)
    gate = client.record.with_name("gate")
    client.send("waits", "w", str(gate))
    eventually(lambda: client.executions()["w"] == 1)
    with client.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("shop")
    # The worker makes its queues again when it comes back.
    eventually(lambda: worker.log().count("Connected to") == 2)
    gate.touch()
    eventually(lambda: client.executions()["w"] == 2 or client.letters())


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_queue_that_is_added_does_not_end_a_pause(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Celery then consumes all queues again; what fails would pile up in the worker's memory."""
    full = {"x-max-length": 0, "x-overflow": "reject-publish"}
    with client.app.connection_for_write() as connection:
        connection.default_channel.queue_declare(
            "dead_letter", durable=True, auto_delete=False, arguments=full
        )
    worker = start_worker(SHOP, broker, env=client.env)
    client.send("refused", "before")
    eventually(lambda: worker.log().count("consuming is paused") == 1)
    arguments = {"queue_arguments": {"x-queue-type": broker.queue_type}}
    client.app.control.add_consumer("more", options=arguments, reply=True)
    eventually(lambda: worker.log().count("consuming is paused") == 2)
    client.send("refused", "after")
    client.app.control.ping()  # it has had the time to take it
    assert client.executions() == {"before": 1}
