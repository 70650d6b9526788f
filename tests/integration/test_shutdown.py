"""A worker that is told to end while a body runs."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_shutdown_of_a_pool_that_cannot_kill_waits_for_the_body(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Celery's raises NotImplementedError into whatever runs just then."""
    worker = start_worker(SHOP, broker, pool=pool, env=client.env)
    result = client.send("waits", "w", str(client.record.with_name("gate")))
    eventually(lambda: client.executions()["w"] == 1)
    worker.send(signal.SIGQUIT)
    eventually(lambda: "Hitting Ctrl+C again" in worker.log())
    client.record.with_name("gate").touch()
    worker.wait()
    assert "NotImplementedError" not in worker.log()
    assert "again in" in worker.log()  # its retry
    worker.start()
    assert client.value(result) == "w done"
    assert client.executions()["w"] == 2
    assert client.letters() == []
