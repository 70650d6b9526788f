"""What the scenarios share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.testing.server import EmbeddedServer
from tests.servers import eventually
from tests.worker import Broker


def need(*modules: str, required: bool = False) -> None:
    """Skip a module of tests whose packages are not installed; CI has the *required* ones."""
    absent = [name for name in modules if find_spec(name.partition(".")[0]) is None]
    if absent and required and os.environ.get("CI"):
        raise RuntimeError(f"{', '.join(absent)}: CI has to have it, see the dev group")
    if absent:
        pytest.skip(f"needs {', '.join(absent)}: make ecosystem", allow_module_level=True)


@dataclass
class Scene:
    """A broker of its own, and what a worker of these apps needs to be told."""

    broker: Broker
    record: Path
    url: str
    app: Any

    @property
    def env(self) -> dict[str, str]:
        return {"RECORD": str(self.record), "REDIS_URL": self.url}

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Send *task* to the queue of these apps."""
        return self.app.send_task(task, args, queue="eco", **options)

    def state(self, result: Any) -> str:
        return str(self.app.backend.get_task_meta(result.id)["status"])

    def ends(self, result: Any, state: str = "SUCCESS") -> None:
        """Wait until *result* is in *state*."""
        eventually(lambda: self.state(result) == state, 30, message=f"{result.id} is {state}")

    def letters(self) -> list[DeadLetter]:
        from celery_resilience.brokers.connect import open_broker

        with self.app.connection_for_read() as connection:
            broker = open_broker(connection)
            try:
                found = broker.browse("dead_letter")
                return [DeadLetter.from_envelope(each.envelope) for each in found]
            finally:
                broker.close()

    def lines(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []


@pytest.fixture(scope="session")
def tcp_redis() -> Iterator[EmbeddedServer]:
    """A server that packages with a Redis client of their own can reach by its URL."""
    with EmbeddedServer(port=0) as server:
        yield server


@pytest.fixture
def scene(tcp_redis: EmbeddedServer, tmp_path: Path) -> Iterator[Scene]:
    with redis.Redis.from_url(tcp_redis.url) as server:
        server.flushall()
    url = tcp_redis.broker_url
    app = Celery("eco", broker=url, backend=url)
    broker = Broker("redis", url, url, "classic", url)
    consumer = app.backend.result_consumer  # results are polled for
    consumer.consume_from = consumer.cancel_for = lambda task_id: None
    yield Scene(broker, tmp_path / "record", url, app)
    app.backend.client.connection_pool.disconnect()
    app.close()
