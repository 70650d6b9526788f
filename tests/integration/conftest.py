"""What every test with a real worker needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kombu import pools

from celery_resilience.cli import render_letter
from celery_resilience.cli import text as table
from tests.client import Client
from tests.servers import RabbitServer
from tests.worker import Broker


@pytest.fixture(autouse=True)
def _pools_end_with_the_test() -> Iterator[None]:
    """Empty kombu's pools: a connection in one of them outlives the server at its other end."""
    yield
    for group in (pools.producers, pools.connections):
        for pool in group.values():
            pool.force_close_all(close_pool=False)
            pool.setup()  # for an app that lives on: it would wait for ever for what is not there
        group.clear()


@pytest.fixture
def broker_named(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Broker]]:
    """``broker_named("rabbitmq4-quorum")``: that broker, empty; results go to Redis everywhere."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Broker:
            redis: Broker = request.getfixturevalue("redis_broker")
            if name == "redis":
                return redis
            if name == "resilient-redis":  # the same server, through our own transport
                return replace(redis, name=name, broker_url=f"resilient-{redis.broker_url}")
            if name == "kombu-redis":  # the same server, through kombu's transport
                return replace(redis, name=name)
            server, queue_type = name.split("-")
            rabbit: RabbitServer = request.getfixturevalue(f"{server}_server")
            vhost = rabbit.add_vhost()
            stack.callback(rabbit.delete_vhost, vhost)
            stack.callback(rabbit.start)  # the test may have left it dead
            return replace(redis, name=name, broker_url=rabbit.url(vhost), queue_type=queue_type)

        yield make


@pytest.fixture(params=["redis", "rabbitmq-classic", "rabbitmq-quorum"])
def broker(request: pytest.FixtureRequest, broker_named: Callable[[str], Broker]) -> Broker:
    """Each broker in turn; ``parametrize("broker", ["redis"], indirect=True)`` picks some."""
    return broker_named(request.param)


@pytest.fixture
def client(broker: Broker, tmp_path: Path) -> Iterator[Client]:
    """A producer on the test's broker."""
    with contextlib.closing(Client(broker, tmp_path / "record")) as made:
        yield made


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands that run in this process print as for a terminal of 80 columns."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for module in (table, render_letter):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
