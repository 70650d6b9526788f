"""Real servers for tests: skipped with the reason where they are missing, but a must under CI."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

from celery_resilience.errors import BrokerError
from celery_resilience.testing.server import EmbeddedServer
from tests import rabbitmq4
from tests.servers import RabbitServer, ServerMissing
from tests.worker import Broker, Worker

# How long one example takes says more about the machine than about the code.
settings.register_profile("celery_resilience", deadline=None)
settings.load_profile("celery_resilience")

#: Databases of the session's Redis: each test takes two that nobody has used lately.
DATABASES = 64
_next_database = itertools.cycle(range(DATABASES))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--redis-server",
        metavar="PATH",
        help="run the tests on this Redis or Valkey server instead of the one that is found",
    )


def missing(reason: str) -> NoReturn:
    """Skip the test; under CI fail it, for there every server has to be present."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_session(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """The session's Redis; tests take *redis_server*, which sees to it that it is up."""
    # everysec may answer before it writes while an fsync goes on; "no" writes first and leaves
    # the fsync to the kernel. So what was answered survives a kill of the server.
    options = ["--databases", str(DATABASES), "--appendfsync", "no"]
    try:
        server = EmbeddedServer(binary=request.config.getoption("redis_server"), options=options)
    except BrokerError as exc:
        missing(str(exc))
    with server:
        yield server


@pytest.fixture
def redis_server(redis_session: EmbeddedServer) -> EmbeddedServer:
    """A real Redis or Valkey, shared by the session and up, whatever the last test did to it."""
    redis_session.start()
    return redis_session


@pytest.fixture(scope="session")
def rabbitmq_session() -> Iterator[RabbitServer]:
    """The session's RabbitMQ; tests take *rabbitmq_server*, which sees to it that it is up."""
    with _rabbitmq(os.environ.get("RABBITMQ", "")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq4_session() -> Iterator[RabbitServer]:
    """The session's RabbitMQ 4, beside the other one."""
    with _rabbitmq("4") as server:
        yield server


@contextlib.contextmanager
def _rabbitmq(version: str) -> Iterator[RabbitServer]:
    try:
        server = rabbitmq4.server(version)
    except ServerMissing as exc:
        missing(str(exc))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def rabbitmq_server(rabbitmq_session: RabbitServer) -> RabbitServer:
    """A real RabbitMQ, shared by the session and up, whatever the last test did to it."""
    rabbitmq_session.start()
    return rabbitmq_session


@pytest.fixture
def rabbitmq4_server(rabbitmq4_session: RabbitServer) -> RabbitServer:
    """A real RabbitMQ 4, shared by the session and up, whatever the last test did to it."""
    rabbitmq4_session.start()
    return rabbitmq4_session


@pytest.fixture
def redis_broker(redis_server: EmbeddedServer) -> Broker:
    """An empty database of the session's Redis as broker, and another one for the results."""
    broker, results = _empty_database(redis_server), _empty_database(redis_server)
    return Broker(
        name="redis",
        broker_url=f"{redis_server.broker_url}?virtual_host={broker}",
        backend_url=f"{redis_server.broker_url}?virtual_host={results}",
        queue_type="classic",
        redis_url=f"{redis_server.url}?db={broker}",
    )


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """``start_worker(app, broker, **options)``: a Worker that is ready, and ends with the test."""
    with contextlib.ExitStack() as stack:
        counter = itertools.count(1)

        def start(app: str, broker: Broker, **options: Any) -> Worker:
            options.setdefault("log", tmp_path / f"worker-{next(counter)}.log")
            return stack.enter_context(Worker(app, broker, **options))

        yield start


def _empty_database(server: EmbeddedServer) -> int:
    import redis

    number = next(_next_database)
    with redis.Redis.from_url(f"{server.url}?db={number}") as client:
        client.flushdb()
    return number
