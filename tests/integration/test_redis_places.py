"""Where a worker's Redis is: a list of brokers that fail over, a node of a cluster."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from celery_resilience.testing.server import EmbeddedServer
from tests.client import Client
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
OURS = "Redis, through our own transport"

StartWorker = Callable[..., Worker]


@pytest.fixture
def two() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with ExitStack() as stack:
        first, second = (stack.enter_context(EmbeddedServer(port=0)) for _ in range(2))
        yield first, second


def waits_in_a_pop(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as db:
        return any(each["cmd"] == "brpop" for each in db.client_list())


def runs(broker: Broker, name: str, record: Path) -> bool:
    """Send one by a producer of its own, whose server may have been another one before."""
    with closing(Client(broker, record)) as client:
        return bool(client.value(client.send("flaky", name, 1), timeout=90))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_list_of_brokers_both_ways(
    pool: str,
    two: tuple[EmbeddedServer, EmbeddedServer],
    redis_broker: Broker,
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    """To the second when the first dies, and back when the second does: ours each time."""
    urls, record = [server.broker_url for server in two], tmp_path / "record"
    brokers = [replace(redis_broker, broker_url=url) for url in urls]
    both = replace(redis_broker, broker_url=";".join(urls))
    worker = start_worker(SHOP, both, pool=pool, env={"RECORD": str(record)})
    assert runs(brokers[0], "one", record)
    for now, gone in ((1, 0), (0, 1)):
        two[now].start()
        two[gone].kill()
        assert runs(brokers[now], f"on-{now}", record)
        assert not waits_in_a_pop(two[now])
    assert worker.terminate() == 0


@pytest.mark.timeout(240)
def test_list_with_another_kind_of_broker(
    two: tuple[EmbeddedServer, EmbeddedServer],
    redis_broker: Broker,
    rabbitmq_server: RabbitServer,
    tmp_path: Path,
    start_worker: StartWorker,
) -> None:
    """From Redis to RabbitMQ, each in its own way, and back."""
    vhost, record = rabbitmq_server.add_vhost(), tmp_path / "record"
    on_redis = replace(redis_broker, broker_url=two[0].broker_url)
    on_rabbit = replace(
        redis_broker, name="rabbitmq-classic", broker_url=rabbitmq_server.url(vhost)
    )
    both = replace(redis_broker, broker_url=f"{on_redis.broker_url};{on_rabbit.broker_url}")
    worker = start_worker(SHOP, both, env={"RECORD": str(record)})
    assert runs(on_redis, "one", record)
    two[0].kill()
    assert runs(on_rabbit, "two", record)
    two[0].start()
    rabbitmq_server.delete_vhost(vhost)
    assert runs(on_redis, "three", record)
    assert not waits_in_a_pop(two[0])
    assert worker.terminate() == 0


def low_port() -> int:
    """One whose neighbour 10,000 further, for what nodes say to each other, is one as well."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20000, 30000)))
            return int(probe.getsockname()[1])


@pytest.mark.timeout(300)
def test_node_of_a_cluster(redis_broker: Broker, tmp_path: Path, start_worker: StartWorker) -> None:
    """A prefix with a hash tag puts every key into one slot: scripts, leases, retries, letters."""
    options = {"global_keyprefix": "{shop}:"}
    with ExitStack() as stack:
        server = stack.enter_context(
            EmbeddedServer(port=low_port(), options=["--cluster-enabled", "yes"])
        )
        db = stack.enter_context(redis.Redis.from_url(server.url))
        db.execute_command("CLUSTER ADDSLOTS", *range(16384))
        eventually(lambda: db.cluster("info")["cluster_state"] == "ok")
        broker = replace(redis_broker, broker_url=server.broker_url)
        client = stack.enter_context(closing(Client(broker, tmp_path / "record")))
        client.app.conf.broker_transport_options = options
        env = {**client.env, "BROKER_OPTIONS": json.dumps(options), "LEASE": "2"}
        worker = start_worker(SHOP, broker, env=env)
        assert OURS in worker.log()
        assert client.value(client.send("flaky", "one", 2))
        client.send("refused", "no")
        eventually(lambda: len(client.letters()) == 1)
        gate = tmp_path / "gate"
        held = client.send("waits", "held", str(gate))
        eventually(lambda: client.executions()["held"] == 1)
        worker.kill()
        gate.touch()
        second = start_worker(SHOP, broker, env=env)
        assert client.value(held)
        assert {key.partition(b":")[0] for key in db.scan_iter("*")} <= {b"{shop}"}
        log = worker.log() + second.log()
        assert "through kombu's" not in log
        assert "CROSSSLOT" not in log
        assert second.terminate() == 0
