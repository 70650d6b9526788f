"""A worker that is told to end while a body runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP, LIMITED = "tests.apps.shop", "tests.apps.limited"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_cold_shutdown_of_a_pool_that_cannot_kill_waits_for_the_body(
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


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        ("rabbitmq-classic", "prefork"),
        ("rabbitmq-quorum", "prefork"),
        ("rabbitmq-classic", "threads"),
        ("rabbitmq-quorum", "gevent"),
    ],
    indirect=["broker"],
)
def test_warm_shutdown_is_no_death(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """What a worker has received and not begun is requeued, and no redelivery is counted."""
    worker = start_worker(SHOP, broker, pool=pool, concurrency=1, env=client.env)
    results = [client.send("slow", f"slow-{n}", 0.5) for n in range(8)]
    for restart in range(3):
        eventually(lambda: sum(client.executions().values()) > restart)  # noqa: B023
        worker.terminate()
        worker.start()
    for result in results:
        assert client.value(result)
    assert set(client.executions().values()) == {1}
    assert "in isolation" not in worker.log()
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic"], indirect=True)
def test_body_that_a_child_has_and_the_worker_has_not_heard_of_runs_once(
    broker: Broker, client: Client, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """Celery takes it for unsent when it goes down, and would not hear how it ends."""
    worker = start_worker(LIMITED, broker, concurrency=1, env=client.env)
    told = client.inspect("stats", worker.name)
    (child,) = told[worker.name]["pool"]["processes"]
    os.kill(child, signal.SIGSTOP)
    result = client.send("slow", "sent", 0.0)
    eventually(lambda: f"[{result.id}] received" in worker.log())
    assert client.inspect("ping", worker.name)  # meanwhile it is written
    stall = {"arguments": {"path": str(tmp_path / "on")}, "destination": [worker.name]}
    with client.app.connection_for_write() as connection:
        client.app.control.broadcast("stall", connection=connection, **stall)
    eventually(lambda: "the loop stands" in worker.log())
    os.kill(child, signal.SIGCONT)
    assert client.value(result) == "sent"
    worker.send(signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.log())
    (tmp_path / "on").touch()
    assert worker.wait() == 0
    eventually(lambda: client.count("shop") == 0)
    worker.start()
    assert client.value(client.send("slow", "next", 0.0)) == "next"
    assert client.executions() == {"sent": 1, "next": 1}


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_message_that_waits_for_its_rate_limit_is_not_counted_either(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """A worker begins with one token: it is for a task, not for one that was delivered again."""
    worker = start_worker(LIMITED, broker, concurrency=1, env=client.env)
    for number in range(8):
        client.app.send_task(f"{LIMITED}.rated", (f"rated-{number}",))
    for restart in range(1, 5):
        eventually(lambda: sum(client.executions().values()) == restart)  # noqa: B023
        worker.terminate()
        worker.start()
    eventually(lambda: sum(client.executions().values()) == 5)
    assert client.letters() == []


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        ("rabbitmq-classic", "prefork"),
        ("rabbitmq-quorum", "prefork"),
        ("resilient-redis", "prefork"),
    ],
    indirect=["broker"],
)
def test_body_that_a_cold_shutdown_kills_has_not_killed_the_worker(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Four deployments that are quicker than a long task do not make a dead letter of it."""
    worker = start_worker(SHOP, broker, pool=pool, concurrency=1, env=client.env)
    client.send("slow", "long", 15.0)
    for restart in range(1, 5):
        eventually(lambda: client.executions()["long"] == restart or client.count("dead_letter"))  # noqa: B023
        worker.send(signal.SIGQUIT)
        worker.wait()
        worker.start()
        worker.wait_ready()
    eventually(lambda: client.executions()["long"] == 5 or client.count("dead_letter"))
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "resilient-redis"], indirect=True)
def test_signal_to_all_of_the_worker_is_no_death(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """As systemd, supervisord and a terminal send it: the pool gets it too."""
    worker = start_worker(SHOP, broker, concurrency=1, env=client.env)
    client.send("slow", "long", 15.0)
    for restart, told in enumerate((signal.SIGTERM, signal.SIGQUIT, signal.SIGTERM), 1):
        eventually(lambda: client.executions()["long"] == restart or client.count("dead_letter"))  # noqa: B023
        os.killpg(worker.pid, told)
        worker.wait()
        worker.start()
        worker.wait_ready()
    eventually(lambda: client.executions()["long"] == 4 or client.count("dead_letter"))
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_message_of_a_closed_channel_is_not_requeued(
    broker: Broker, client: Client, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """RabbitMQ has it already; the channel looks open, for py-amqp has opened it again."""
    env = {**client.env, "CHANNEL_ERROR": str(tmp_path / "broken")}
    for number in range(4):
        client.send("slow", f"slow-{number}", 3.0)
    worker = start_worker(LIMITED, broker, concurrency=1, env=env)
    worker.wait()
    worker.start()
    eventually(lambda: len(client.executions()) == 4, timeout=40)
    eventually(lambda: client.count("shop") == 0)
    time.sleep(3.5)
    # What ran when the channel was closed runs again. Put back as well, all four would.
    assert sum(client.executions().values()) <= 6


@pytest.mark.parametrize(
    ("broker", "told"),
    [("redis", signal.SIGQUIT), ("rabbitmq-classic", signal.SIGTERM)],
    indirect=["broker"],
)
def test_soft_shutdown_of_greenlets_lets_the_body_end(
    broker: Broker, told: signal.Signals, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """The signal comes to gevent's hub, which runs while all wait, and may not wait itself."""
    env = {**client.env, **({"REMAP_SIGTERM": "SIGQUIT"} if told is signal.SIGTERM else {})}
    soft = ["--", "worker.soft_shutdown_timeout=3"]
    worker = start_worker(SHOP, broker, pool="gevent", env=env, arguments=soft)
    gate = client.record.with_name("gate")
    result = client.send("opens", "w", str(gate))
    eventually(lambda: client.executions()["w"] == 1)
    worker.send(told)
    eventually(lambda: "Initiating Soft Shutdown" in worker.log())
    gate.touch()
    worker.wait()
    assert "Unrecoverable" not in worker.log()
    assert "Restoring" not in worker.log()  # it has left before
    assert client.state(result) == "SUCCESS"


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_worker_that_ends_of_an_error_gives_back_what_it_holds(
    broker: Broker, client: Client, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """What it runs comes to its end before, and nobody has to wait for its lease to end."""
    env = {**client.env, "LOOP_ERROR": str(tmp_path / "broken")}
    worker = start_worker(LIMITED, broker, pool="gevent", env=env)
    gate = client.record.with_name("gate")
    runs = client.send("opens", "runs", str(gate))
    client.app.send_task(f"{SHOP}.opens", ("waits", str(gate)), countdown=600)
    eventually(lambda: worker.log().count("received") == 2 and client.executions()["runs"])
    (tmp_path / "broken").touch()
    eventually(lambda: "Unrecoverable error" in worker.log())
    gate.touch()
    assert worker.wait() == 1
    assert client.state(runs) == "SUCCESS"
    assert client.count("shop") == 1
    with redis.Redis.from_url(broker.redis_url) as db:
        assert list(db.scan_iter("celery_resilience:held:*")) == []
