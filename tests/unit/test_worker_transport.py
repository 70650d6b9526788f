"""Through which transport a worker takes, and what anybody sees of it."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker.consumer import Consumer
from kombu import Connection, pools
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.pyamqp import Transport as Amqp

from celery_resilience.settings import Settings
from celery_resilience.transport import SentinelTransport, Transport
from celery_resilience.transport.selection import lets_ours_take, patched
from celery_resilience.worker import transport as worker_transport
from celery_resilience.worker.banner import _kind
from celery_resilience.worker.transport import WorkerTransport

THEIRS: Any = kombu_redis
URLS = [
    ("redis://h:1/2", Transport),
    ("rediss://h:1/2?ssl_cert_reqs=required", Transport),
    ("redis+socket:///tmp/s", Transport),
    ("sentinel://a:1;sentinel://b:2", SentinelTransport),
]


class Worker(Consumer):  # type: ignore[misc]
    """A consumer as far as the choice of its transport goes."""

    def __init__(self, url: str, allowed: bool = True, **conf: Any) -> None:
        self.app = Celery(broker=url, set_as_current=False)
        self.app.conf.update(conf)
        self.conninfo = self.app.connection_for_read()
        self.connection = None
        self.allowed = allowed

    def ensure_connected(self, conn: Any) -> Any:
        conn.transport.ensured = True
        return conn

    def choice(self) -> WorkerTransport:
        chosen = WorkerTransport(self, Settings.of(self.app))
        chosen.choose()
        return chosen


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What it refuses."""
    made = SimpleNamespace(refuses="")
    monkeypatch.setattr(worker_transport, "why_server_refuses", lambda *_: made.refuses)
    return made


@pytest.mark.parametrize(("url", "ours"), URLS)
def test_ours_takes_where_nobody_sees_it(url: str, ours: type) -> None:
    worker = Worker(url)
    choice = worker.choice()
    assert (choice.name, choice.why) == ("own", "")
    connection, plain = worker.connection_for_read(), worker.app.connection_for_read()
    assert type(connection.transport) is ours
    assert type(plain.transport) is THEIRS.Transport or url.startswith("sentinel")
    assert type(plain.transport) is not ours
    assert connection.as_uri(include_password=True) == plain.as_uri(include_password=True)
    assert connection.info() == plain.info()
    assert repr(connection).partition(" at ")[0] == repr(plain).partition(" at ")[0]
    assert isinstance(connection, type(plain))
    for name in ("redis", "rediss", "sentinel"):
        assert TRANSPORT_ALIASES[name].startswith("kombu.")


def test_connection_has_a_pool_of_its_own_and_travels_as_kombus() -> None:
    worker = Worker("redis://h/0")
    worker.choice()
    connection, plain = worker.connection_for_read(), worker.app.connection_for_read()
    assert pools.connections[connection] is not pools.connections[plain]
    assert pools.connections[connection] is pools.connections[worker.connection_for_read()]
    assert type(connection.clone().transport) is Transport
    assert type(pickle.loads(pickle.dumps(connection)).transport) is THEIRS.Transport


def test_subclass_of_connections_stays_what_it_is() -> None:
    class Mine(Connection):
        pass

    connection = Mine("redis://h")
    lets_ours_take(connection)
    assert isinstance(connection, Mine)
    assert type(connection.transport) is Transport
    lets_ours_take(connection)  # twice is once
    assert type(connection).__mro__[1] is Mine
    lets_ours_take(connection, False)
    assert type(connection) is Mine
    assert type(connection.transport) is THEIRS.Transport


@pytest.mark.parametrize(
    ("first", "then"), [("redis://a", "amqp://b"), ("amqp://b", "redis://a"), ("redis://a",) * 2]
)
def test_failover_asks_again(first: str, then: str) -> None:
    worker = Worker(f"{first};{then}")
    choice = worker.choice()
    assert choice.name == "own"
    connection = worker.connection_for_read()
    assert choice.name == ("own" if first.startswith("redis") else None)
    for url in (first, then, first):
        assert type(connection.transport) is (Transport if url.startswith("redis") else Amqp)
        connection.maybe_switch_next()


@pytest.mark.parametrize("url", ["amqp://h", "memory://", "resilient-redis://h"])
def test_other_brokers_are_left_alone(url: str, server: SimpleNamespace) -> None:
    server.refuses = "what is not asked"
    worker = Worker(url, resilience_redis_transport="own")
    choice = worker.choice()
    assert choice.name == ("own" if "redis" in url else None)
    assert "connection_for_read" not in vars(worker)


class Named(THEIRS.Transport):  # type: ignore[misc]
    """Somebody's own."""


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        ({"broker_transport": Named}, "names its transport itself"),
        ({"broker_transport": "kombu.transport.redis:Transport"}, "names its transport itself"),
        ({"broker_transport_options": {"ack_emulation": False}}, "ack_emulation"),
    ],
)
def test_reasons_against_our_own_transport(
    conf: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("redis://h", **conf)
    choice = worker.choice()
    assert choice.name == "kombu"
    assert why in choice.why
    assert choice.told() == {"redis_transport": "kombu", "why": choice.why}
    assert _kind(worker.conninfo, choice) == f"Redis, through kombu's transport: {choice.why}"
    connection = worker.connection_for_read()
    assert not isinstance(connection.transport, Transport)
    assert len(caplog.records) == 1  # told when the worker is made, not at each connect
    assert "taking when it is killed is lost" in caplog.text
    with pytest.raises(ImproperlyConfigured, match=why):
        Worker("redis://h", resilience_redis_transport="own", **conf).choice()


def test_alias_as_broker_transport_names_no_class() -> None:
    worker = Worker("redis://h", broker_transport="redis")
    assert worker.choice().name == "own"
    assert type(worker.connection_for_read().transport) is Transport


@pytest.mark.parametrize("conf", ["resilience_enabled", "resilience_redis_transport"])
def test_switched_off(conf: str, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker("redis://h", **{conf: "kombu" if "transport" in conf else False})
    choice = worker.choice()
    assert choice.name == "kombu"
    assert "connection_for_read" not in vars(worker)
    assert not caplog.records  # it was asked for


def test_consumer_class_of_the_apps_is_left_alone() -> None:
    class Own(Worker):
        def connection_for_read(self, heartbeat: Any = None) -> Any:
            return "theirs"

    worker = Own("redis://h")
    assert "Own has a connection_for_read of its own" in worker.choice().why
    assert worker.connection_for_read() == "theirs"


def test_refusal_is_told_once_and_may_end(
    server: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("redis://h")
    choice = worker.choice()
    server.refuses = "Redis refuses LINDEX on shop"
    for _ in range(2):
        assert type(worker.connection_for_read().transport) is THEIRS.Transport
        assert choice.told() == {"redis_transport": "kombu", "why": server.refuses}
    assert len(caplog.records) == 1
    server.refuses = ""
    assert type(worker.connection_for_read().transport) is Transport
    assert choice.name == "own"


def test_own_is_no_wish(server: SimpleNamespace) -> None:
    worker = Worker("redis://h", resilience_redis_transport="own")
    worker.choice()
    server.refuses = "Redis refuses EVALSHA"
    with pytest.raises(ImproperlyConfigured, match="refuses EVALSHA"):
        worker.connection_for_read()


def test_step_that_comes_late_begins_with_the_next_connection() -> None:
    worker = Worker("redis://h")
    worker.connection = worker.app.connection_for_read()
    choice = worker.choice()
    assert choice.name == "kombu"
    assert "next connection" in choice.why
    worker.connection_for_read()
    assert (choice.name, choice.why) == ("own", "")


def test_transport_that_the_apps_code_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patched() == ""
    put = THEIRS.Channel._put
    with monkeypatch.context() as patch:
        patch.setattr(THEIRS.Channel, "_put", lambda *args, **options: put(*args, **options))
        assert patched() == "kombu.transport.redis.Channel._put"
        assert "kombu.transport.redis.Channel._put" in Worker("redis://h").choice().why
    with monkeypatch.context() as patch:
        patch.setattr(THEIRS.Transport, "Channel", type("Mine", (THEIRS.Channel,), {}))
        assert patched() == "kombu.transport.redis.Transport.Channel"
    with monkeypatch.context() as patch:
        patch.setitem(TRANSPORT_ALIASES, "redis", "shop.transport:Transport")
        assert patched() == "shop.transport:Transport"
    with monkeypatch.context() as patch:
        patch.setattr(THEIRS, "QoS", type("Mine", (THEIRS.QoS,), {}))
        assert patched().endswith("Mine")
    with monkeypatch.context() as patch:  # what is no code is inherited
        patch.setattr(THEIRS.Channel, "visibility_timeout", 5)
        assert patched() == ""
    assert patched() == ""
