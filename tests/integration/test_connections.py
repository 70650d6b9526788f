"""Connections are lost and nothing dies: what runs is known when it comes back, and runs once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import struct
import termios
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from celery_resilience.testing.server import EmbeddedServer
from tests.client import Client
from tests.faults.proxy import Door
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
StartWorker = Callable[..., Worker]


def close(server: RabbitServer, broker: Broker) -> None:
    server.close_connections(broker.broker_url.rsplit("/", 1)[1])


def consumers(client: Client) -> int:
    with client.app.connection_for_read() as connection:
        told = connection.default_channel.queue_declare("shop", passive=True)
        return int(told.consumer_count)


@pytest.mark.parametrize(
    ("broker", "pool", "more"),
    # A loop of greenlets waits for room in the pool, and hears nothing meanwhile.
    [("rabbitmq-classic", "prefork", 4), ("rabbitmq-quorum", "gevent", 0)],
    indirect=["broker"],
)
def test_lost_connection_is_no_death(
    broker: Broker, pool: str, more: int, client: Client, rabbitmq_server: RabbitServer,
    start_worker: StartWorker,
) -> None:  # fmt: skip
    """Three of them while bodies run: each runs once, and its end settles the last delivery."""
    gate = client.record.with_name("gate")
    worker = start_worker(SHOP, broker, pool=pool, concurrency=2, env=client.env)
    running = [client.send("waits", f"runs-{n}", str(gate)) for n in range(2)]
    eventually(lambda: len(client.executions()) == 2)
    behind = [client.send("slow", f"behind-{n}", 0.0) for n in range(more)]
    for times in (1, 2, 3):
        close(rabbitmq_server, broker)
        eventually(lambda: worker.log().count("Connected to") > times)  # noqa: B023
        eventually(lambda: worker.log().count("and runs here") == 2 * times)  # noqa: B023
    gate.touch()
    for result in running + behind:
        assert client.value(result)
    expected = {f"runs-{n}": 2 for n in range(2)} | {f"behind-{n}": 1 for n in range(more)}
    assert client.executions() == expected  # the first attempts fail
    worker.terminate()
    assert client.letters() == []
    assert client.count("shop") == 0
    assert not re.search(r"celery_resilience/\S+:\d+: \w*Warning", worker.log())


@pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed")
@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_worker_of_eventlet_settles_and_hears_of_a_lost_connection(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    """Its sockets are not the standard library's, and its select can't poll."""
    gate = client.record.with_name("gate")
    worker = start_worker(SHOP, broker, pool="eventlet", concurrency=2, env=client.env)
    assert client.value(client.send("flaky", "retried", 2))
    client.send("refused", "dead")
    eventually(lambda: len(client.letters()) == 1)
    running = client.send("waits", "runs", str(gate))
    eventually(lambda: client.executions()["runs"] == 1)
    close(rabbitmq_server, broker)
    eventually(lambda: "and runs here" in worker.log())
    gate.touch()
    assert client.value(running)
    assert client.executions() == {"retried": 3, "dead": 1, "runs": 2}  # its first attempt fails
    assert worker.terminate() == 0
    assert client.count("shop") == 0
    assert len(client.letters()) == 1


@pytest.mark.parametrize(
    ("broker", "during"),
    [("rabbitmq-classic", "the body"), ("rabbitmq-quorum", "the question")],
    indirect=["broker"],
)
def test_lost_connection_is_no_death_for_another_worker_either(
    broker: Broker, during: str, client: Client, rabbitmq_server: RabbitServer,
    start_worker: StartWorker,
) -> None:  # fmt: skip
    """One whose connection is lost three times in one body; RabbitMQ delivers to the other."""
    door = Door(rabbitmq_server.port)
    gate = client.record.with_name("gate")
    url = broker.broker_url.replace(f":{rabbitmq_server.port}/", f":{door.port}/")
    losing = start_worker(SHOP, replace(broker, broker_url=url), env=client.env)
    losing.wait_ready()
    result = client.send("opens", "long", str(gate))
    eventually(lambda: client.executions()["long"] == 1)
    # It has room for one message: what it publishes anew is for the one that runs it.
    little = ["--prefetch-multiplier", "1"]
    other = start_worker(SHOP, broker, concurrency=1, arguments=little, env=client.env)
    other.wait_ready()
    for times in (1, 2, 3):
        other.send(signal.SIGSTOP)
        door.cut()
        door.mend()
        eventually(lambda: losing.log().count("Connected to") > times)  # noqa: B023
        eventually(lambda: consumers(client) == 2)
        other.send(signal.SIGCONT)
        if times < 3:
            eventually(lambda: losing.log().count("and runs here") == times)  # noqa: B023
    if during == "the body":
        eventually(lambda: "which has lost its connection: not started" in other.log())
    gate.touch()
    assert client.value(result) == "long done"
    known = "done in", "is done: it is not run again", "ended: it is not run again"
    eventually(lambda: any(words in losing.log() + other.log() for words in known))
    eventually(lambda: client.count("shop") == 0)
    for worker in (other, losing):
        worker.terminate()
    assert client.count("shop") == 0
    assert client.executions() == {"long": 1}
    assert client.letters() == []
    door.close()


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_body_that_ends_without_a_connection_is_settled_when_it_comes_back(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    worker = start_worker(SHOP, broker, pool="threads", concurrency=4, env=client.env)
    gate = client.record.with_name("gate")
    failing = [client.send("waits", f"fails-{n}", str(gate)) for n in range(2)]
    eventually(lambda: len(client.executions()) == 2)
    rabbitmq_server.kill()
    eventually(lambda: "Connection to broker lost" in worker.log())
    gate.touch()
    eventually(lambda: worker.log().count("attempt 1 ended") == 2)
    rabbitmq_server.start()
    for result in failing:
        assert client.value(result)
    assert client.executions() == {f"fails-{n}": 2 for n in range(2)}
    assert worker.log().count("and has ended: it is not run again") == 2


@pytest.mark.parametrize("name", ["redis", "kombu-redis"])
def test_lost_process_is_settled_though_the_connection_goes_meanwhile(
    redis_broker: Broker, name: str, tmp_path: Path, start_worker: StartWorker,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """What becomes of its message is being decided when the connection comes back."""
    with contextlib.ExitStack() as stack:
        binary = request.config.getoption("redis_server")
        server = stack.enter_context(EmbeddedServer(binary=binary, port=0))
        door = Door(int(server.port or 0))
        stack.callback(door.close)
        url = "redis://127.0.0.1:{}/0"
        broker = replace(redis_broker, name=name, broker_url=url.format(server.port))
        client = stack.enter_context(contextlib.closing(Client(broker, tmp_path / "record")))
        away = replace(broker, broker_url=url.format(door.port))
        worker = start_worker(SHOP, away, env=client.env)
        gate = client.record.with_name("gate")
        results = [client.send("waits", f"dies-{n}", str(gate)) for n in range(2)]
        eventually(lambda: len(client.executions()) == 2)
        worker.send(signal.SIGSTOP)  # it hears of both at once
        for child in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        door.cut()
        worker.send(signal.SIGCONT)
        eventually(lambda: "Connection to broker lost" in worker.log())
        door.mend()
        for result in results:
            assert client.value(result)
        assert worker.log().count("attempt 1 ended (billiard.exceptions.WorkerLostError") == 2
        assert "not settled" not in worker.log()
        assert client.executions() == {f"dies-{n}": 2 for n in range(2)}


@pytest.mark.parametrize("broker", ["redis", "kombu-redis"], indirect=True)
def test_request_that_waits_for_a_thread_is_kept_over_every_loss(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Celery forgets at the second loss what has not begun, and the threads run it all the same."""
    gate = client.record.with_name("gate")
    env = {**client.env, "AHEAD": "4"}  # as when quick tasks were run; through kombu's always
    worker = start_worker(SHOP, broker, pool="threads", concurrency=2, env=env)
    results = [client.send("waits", f"t-{n}", str(gate)) for n in range(6)]
    eventually(lambda: len(client.executions()) == 2 and worker.log().count("received") == 6)
    assert broker.redis_url is not None
    with redis.Redis.from_url(broker.redis_url) as db:
        lost = "Connection to broker lost"

        def cut(times: int) -> bool:
            """Again, where the client has connected anew without a word."""
            if worker.log().count(lost) >= times:
                return True
            db.client_kill_filter(_type="normal", skipme=True)
            db.client_kill_filter(_type="pubsub", skipme=True)
            return False

        for times in (1, 2, 3):
            eventually(partial(cut, times), every=0.5)
            eventually(lambda: worker.log().rpartition(lost)[2].count("Connected to") == 1)
    gate.touch()
    for result in results:
        assert client.value(result)
    with redis.Redis.from_url(broker.redis_url) as db:
        eventually(lambda: not db.exists("shop", *db.keys("celery_resilience:held:*")))
    assert client.executions() == {f"t-{n}": 2 for n in range(6)}


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_result_that_a_process_has_sent_in_part_is_read_on_after_a_lost_connection(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    """What follows it in its pipe is another one's, and no worker ends of it."""
    worker = start_worker(SHOP, broker, concurrency=1, env=client.env)
    gate = client.record.with_name("gate")
    client.send("fails_at_length", "long", str(gate))
    eventually(client.executions)
    (child,) = client.inspect("stats", worker.name)[worker.name]["pool"]["processes"]
    with contextlib.ExitStack() as stack:
        pipes = narrow_pipes(child)
        worker.send(signal.SIGSTOP)
        stack.callback(worker.send, signal.SIGCONT)
        gate.touch()
        eventually(lambda: any(waiting(pipe) for pipe in pipes))
        os.kill(child, signal.SIGSTOP)
        stack.callback(os.kill, child, signal.SIGCONT)
        worker.send(signal.SIGCONT)
        eventually(lambda: not any(waiting(pipe) for pipe in pipes))
        close(rabbitmq_server, broker)
        eventually(lambda: worker.log().count("Connected to amqp") > 1)
    for pipe in pipes:
        os.close(pipe)
    assert client.value(client.send("slow", "next", 0.0)) == "next"
    eventually(lambda: client.count("shop") == 0)
    assert worker.terminate() == 0
    assert client.executions() == {"long": 1, "next": 1}
    assert len(client.letters()) == 1


def narrow_pipes(child: int) -> list[int]:
    """The pipes that *child* has open hold one page each from now on."""
    pipes = []
    for entry in Path(f"/proc/{child}/fd").iterdir():
        if os.readlink(entry).startswith("pipe:"):
            pipe = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)  # type: ignore[attr-defined]
            pipes.append(pipe)
    return pipes


def waiting(pipe: int) -> int:
    """How many bytes nobody has read yet."""
    (number,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
    return int(number)
