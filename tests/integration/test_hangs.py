"""A server that accepts connections and never answers: whoever asks it is told so in time."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.connection import Connection as RedisConnection

from celery_resilience.brokers import connections
from celery_resilience.brokers.connections import pool_of
from celery_resilience.brokers.within import within
from celery_resilience.operate.dead_letters import DeadLetters, NoAnswer
from celery_resilience.testing.server import EmbeddedServer
from celery_resilience.worker import peers
from tests.faults.proxy import Door
from tests.integration.test_dead_letters import Shop
from tests.integration.test_retries import Queues
from tests.servers import eventually
from tests.worker import ROOT, Broker

#: How AMQP begins the method that publishes.
BASIC_PUBLISH = b"\x00\x3c\x00\x28"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


def behind_a_door(stack: contextlib.ExitStack) -> tuple[Door, Any]:
    """A door to a Redis, and an app that goes through it."""
    server = stack.enter_context(EmbeddedServer(port=0))
    assert server.port is not None
    door = Door(server.port)
    stack.callback(door.close)
    app = Celery(broker=f"redis://127.0.0.1:{door.port}/0", set_as_current=False)
    stack.callback(app.close)
    return door, app


def behind_a_door_to(stack: contextlib.ExitStack, url: str) -> tuple[Door, Any]:
    """A door to the server that listens there, and an app that goes through it."""
    port = Connection(url).port
    door = Door(port)
    stack.callback(door.close)
    through = url.replace(f":{port}/", f":{door.port}/")
    app = Celery(broker=through, set_as_current=False)
    stack.callback(app.close)
    return door, app


def celery(
    broker_url: str, *words: str, backend: str = "cache+memory://", patience: float = 60
) -> subprocess.CompletedProcess[str]:
    """``celery`` with these words; it is not waited for for ever."""
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tests.integration.plain_app", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=patience, check=False,
        env={
            **os.environ, "BROKER_URL": broker_url, "BACKEND_URL": backend,
            "QUEUE_TYPE": "classic", "PYTHONPATH": str(ROOT),
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "verb"),
    [
        ("redis", "dlq count --fail-if-any"),
        ("redis", "retries ls"),
        ("resilient-redis", "dlq ls"),
        ("amqp", "dlq count --fail-if-any"),
        ("amqp", "resilience doctor"),
    ],
)
def test_command_ends_in_time_and_tells_silence_from_letters(
    silent: int, scheme: str, verb: str
) -> None:
    done = celery(f"{scheme}://127.0.0.1:{silent}//", *verb.split(), "--timeout", "1.5")
    assert done.returncode == 3, done.stderr
    assert "has not answered for 1.5 s" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["bury", "drop --because tests"])
def test_result_store_that_hangs_is_waited_for_once(
    redis_broker: Broker, silent: int, verb: str
) -> None:
    """What was to be done is done; Celery's own patience with a Redis is two minutes for each."""
    with contextlib.closing(Queues(redis_broker)) as queues:
        queues.many(3)
        done = celery(
            redis_broker.broker_url, "retries", *verb.split(), "--all", "--yes",
            "--timeout", "1.5", backend=f"redis://127.0.0.1:{silent}/0", patience=20,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the result store has not answered for 1.5 s") == 1
        assert queues.waiting() == []
        assert queues.redis.llen("dead_letter") == (3 if verb == "bury" else 0)


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_replay_waits_no_longer_for_a_confirm(broker: Broker) -> None:
    """Nor is its letter gone."""
    shop = Shop(broker)
    with contextlib.closing(shop.app), contextlib.ExitStack() as stack:
        shop.bury(1)
        door, app = behind_a_door_to(stack, broker.broker_url)
        door.jam_at(BASIC_PUBLISH)
        done = celery(
            app.conf.broker_url, "dlq", "replay", "--all", "--yes", "--timeout", "1.5", patience=20
        )
        assert done.returncode == 3, done.stderr
        assert "has not answered for 1.5 s" in done.stderr
        door.cut()
        eventually(lambda: len(shop.ids()) == 1, message="the letter lies there again")


def test_server_that_is_not_there_is_another_answer() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        done = celery(url, "dlq", "count", "--fail-if-any")
    assert done.returncode == 69


@pytest.mark.parametrize("value", ["0", "nan"])
def test_timeout_that_is_none_is_refused(value: str) -> None:
    done = celery("redis://127.0.0.1:1/0", "dlq", "count", f"--timeout={value}")
    assert done.returncode == 2


def test_connection_that_is_forgotten_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is asked next is answered at once."""
    monkeypatch.setattr(connections, "SETTLE", 0.3)
    with contextlib.ExitStack() as stack:
        door, app = behind_a_door(stack)
        connection = stack.enter_context(app.connection_for_read())
        client = redis.Redis(connection_pool=pool_of(connection.default_channel))
        assert client.echo("ours")
        assert door.jam_those(b"ECHO") == 1
        began = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        assert client.ping()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("redis", {"socket_timeout": 0.5}),
        ("rabbitmq-classic", {"confirm_publish": True, "read_timeout": 0.5}),
    ],
)
def test_celery_s_options_bound_who_publishes(
    name: str, options: dict[str, Any], broker_named: Callable[[str], Broker]
) -> None:
    """First on a connection that goes half open, then on new ones: a server that never answers."""
    with contextlib.ExitStack() as stack:
        if name == "redis":
            door, app = behind_a_door(stack)
        else:
            door, app = behind_a_door_to(stack, broker_named(name).broker_url)
        app.conf.update(
            broker_transport_options=options,
            broker_connection_timeout=0.5,
            task_publish_retry_policy={"max_retries": 1},
        )
        app.send_task("t")
        door.jam()
        for _ in range(2):
            with pytest.raises(OperationalError):
                within(20, lambda: app.send_task("t"), "apply_async")
        door.mend()
        within(20, lambda: app.send_task("t"), "apply_async")


def test_look_at_letters_that_hangs_midway_says_so() -> None:
    """Not that there are none."""
    with contextlib.ExitStack() as stack:
        door, app = behind_a_door(stack)
        letters = stack.enter_context(DeadLetters(app, timeout=0.5))
        assert letters.count() == {"dead_letter": 0}
        door.jam()
        for _ in range(2):  # the second on a new connection, which hangs as well
            with pytest.raises(NoAnswer, match=r"has not answered for 0\.5 s"):
                letters.count()
        door.mend()
        assert letters.count() == {"dead_letter": 0}


def test_name_server_that_does_not_answer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RESOLVE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(20))
    connection: Any = connections._resolving(RedisConnection)(host="redis.example", port=6379)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"redis\.example, has not answered for 0\.2 s"):
        connection.connect()
    assert time.monotonic() - began < 5


def test_answer_that_comes_too_late_is_given_back() -> None:
    late: list[int] = []
    gate = threading.Event()

    def call() -> int:
        gate.wait(20)
        return 42

    with pytest.raises(TimeoutError, match=r"it has not answered for 0\.05 s"):
        within(0.05, call, "it", late.append)
    gate.set()
    deadline = time.monotonic() + 10
    while not late and time.monotonic() < deadline:
        time.sleep(0.01)
    assert late == [42]
    assert within(5, lambda: 42, "it") == 42
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0, "it")


def test_other_workers_are_not_waited_for_where_rabbitmq_does_not_answer(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_PAUSE", 0.1)
    monkeypatch.setattr(peers, "_UNANSWERED", 4.0)
    app = Celery(broker=f"amqp://127.0.0.1:{silent}", set_as_current=False)
    calls: queue.Queue[Any] = queue.Queue()
    loop = SimpleNamespace(
        looping=True, in_loop=calls.put,
        call_after=lambda delay, call, *args: threading.Timer(
            delay, calls.put, [partial(call, *args)]
        ).start(),
    )  # fmt: skip
    told: list[Any] = []
    settler: Any = SimpleNamespace(pending=SimpleNamespace(broker=object(), loop=loop))
    began = time.monotonic()
    peers._Questions(settler).ask(app, peers.Name("1", 0, 0, (), ""), None, told.append)
    while not told:
        calls.get(timeout=2 * peers.ASKED)()
    assert told == [peers.Found(peers.Answer.NOTHING)]
    assert time.monotonic() - began < peers.ASKED
