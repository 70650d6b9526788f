"""The broker goes away while a task runs: what was decided is carried out when it is back."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from kombu import Connection
from kombu.asynchronous import Hub

from celery_resilience.brokers.rabbitmq.publisher import ConfirmingPublisher
from celery_resilience.testing.server import EmbeddedServer
from tests.client import Client
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_redis_is_killed_while_a_body_runs(
    broker: Broker,
    pool: str,
    client: Client,
    redis_server: EmbeddedServer,
    start_worker: Callable[..., Worker],
) -> None:
    """The retry that could not be written is written later; the body runs once more, or twice."""
    worker = start_worker(SHOP, broker, pool=pool, env=client.env)
    result = client.send("waits", "w", str(client.record.with_name("gate")))
    eventually(lambda: client.executions()["w"] == 1)
    redis_server.kill()
    client.record.with_name("gate").touch()  # now it fails, and nobody is there to be told
    eventually(
        lambda: "settlement failed" in worker.log() or "Connection to broker lost" in worker.log()
    )
    redis_server.start()
    assert client.value(result, timeout=60) == "w done"
    assert client.executions()["w"] in (2, 3)
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_rabbitmq_is_killed_while_a_body_runs(
    broker: Broker,
    client: Client,
    rabbitmq_server: RabbitServer,
    start_worker: Callable[..., Worker],
) -> None:
    """RabbitMQ gives the message to the worker again: it runs once more, and nothing is lost."""
    start_worker(SHOP, broker, env=client.env)
    result = client.send("waits", "w", str(client.record.with_name("gate")))
    eventually(lambda: client.executions()["w"] == 1)
    rabbitmq_server.kill()
    client.record.with_name("gate").touch()
    rabbitmq_server.start()
    assert client.value(result, timeout=60) == "w done"
    assert client.executions()["w"] in (2, 3)
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_connection_that_rabbitmq_closes_leaves_the_loop(
    broker: Broker, rabbitmq_server: RabbitServer
) -> None:
    """A child of the pool may have inherited its socket: the loop would hear of it without end."""
    hub, connection = Hub(), Connection(broker.broker_url)
    publisher = ConfirmingPublisher(connection, hub)
    publisher.link.open()
    inherited = os.dup(publisher.link.connection.connection.sock.fileno())
    try:
        rabbitmq_server.evaluate(
            '[rabbit_networking:close_connection(P, "test")'
            " || P <- rabbit_networking:connections()]."
        )
        eventually(lambda: hub.poller.poll(0.1))
        publisher.link.read()
        assert publisher.link.connection is None
        assert not hub.poller.poll(0.1)
        assert not hub.readers
    finally:
        os.close(inherited)


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_worker_goes_on_while_rabbitmq_takes_no_messages(
    broker: Broker,
    client: Client,
    rabbitmq_server: RabbitServer,
    start_worker: Callable[..., Worker],
) -> None:
    """The first letter is sent in vain; the next one's queue would be asked for in vain, too."""
    for n in range(3):
        client.send("own_letters", f"own{n}")
        client.send("rule_letters", f"rule{n}")
    rabbitmq_server.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        worker = start_worker(SHOP, broker, env=client.env)
        eventually(lambda: "short of memory or disk); message kept" in worker.log())
    finally:
        rabbitmq_server.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")
    letters = ("dead.shop", "dead_values")
    eventually(lambda: len(client.letters(*letters)) == 6, timeout=60)
