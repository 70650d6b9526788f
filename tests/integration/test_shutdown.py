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


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_warm_shutdown_is_no_death(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """What a worker has received and not begun, it gives back: nobody is suspected for that."""
    worker = start_worker(SHOP, broker, pool=pool, concurrency=1, env=client.env)
    results = [client.send("slow", f"slow-{n}", 0.5) for n in range(8)]
    for restart in range(3):
        eventually(lambda: sum(client.executions().values()) > restart)  # noqa: B023
        worker.terminate()
        worker.start()
    for result in results:
        assert client.value(result)
    assert set(client.executions().values()) == {1}
    assert "suspect" not in worker.log()
    assert client.letters() == []
