"""Whose a message is when it is settled: whatever has become of it, a task ends in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Queue

from celery_resilience.operate.dead_letters import DeadLetters, ReplayResult
from celery_resilience.testing.server import EmbeddedServer
from tests.client import Client
from tests.faults.proxy import Door
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

OWNED = "tests.apps.owned"
ENDS = ["retry", "now", "letter"]
REDIS = pytest.mark.parametrize("broker", ["redis", "kombu-redis"], indirect=True)

StartWorker = Callable[..., Worker]


class Bodies:
    """One body for each way to end; they run until they are let go on."""

    def __init__(self, client: Client, name: str = "b", **options: Any) -> None:
        self._client, self._name = client, name
        self.gate = client.record.with_name(f"{name}.gate")
        self._results = {
            end: client.app.send_task(
                "tests.apps.owned.gated", (f"{name}-{end}", end, str(self.gate)), **options
            )
            for end in ENDS
        }

    def run(self, times: int = 1) -> None:
        """Wait until each has been started so often."""
        started = self._client.executions
        eventually(lambda: all(started()[f"{self._name}-{end}"] == times for end in ENDS))

    def end(self) -> None:
        """Let them fail; each ends where it belongs."""
        self.gate.touch()
        for end in ("retry", "now"):
            assert self._client.value(self._results[end]) == f"{self._name}-{end} done"
        (letter,) = eventually(self._client.letters, message="there is a letter")
        assert letter.task_id == self._results["letter"].id


def lies_nowhere_else(client: Client, queue: str = "shop") -> None:
    eventually(lambda: client.count(queue) == 0)


@REDIS
def test_never_held(broker: Broker, client: Client, start_worker: StartWorker) -> None:
    """A queue that is consumed without acknowledgements."""
    pool = "threads" if "kombu" in broker.name else "prefork"
    worker = start_worker(OWNED, broker, pool=pool, concurrency=4, queues="unheld", env=client.env)
    bodies = Bodies(client, queue="unheld")
    bodies.run()
    bodies.end()
    assert "not settled" not in worker.log()
    lies_nowhere_else(client, "unheld")


@pytest.mark.parametrize(
    ("broker", "later"),
    [("redis", False), ("redis", True), ("kombu-redis", True)],
    indirect=["broker"],
)
def test_forgotten_by_flushall(
    broker: Broker, later: bool, client: Client, start_worker: StartWorker
) -> None:
    """Also if other messages have come since, and the server counts takes anew."""
    pool = "threads" if "kombu" in broker.name else "prefork"
    worker = start_worker(OWNED, broker, pool=pool, concurrency=4, env=client.env)
    bodies = Bodies(client)
    bodies.run()
    with redis.Redis.from_url(broker.redis_url) as db:
        db.flushdb()
    if later:
        for n in range(6):
            assert client.value(client.send("flaky", f"later-{n}", 0))
    bodies.end()
    assert worker.log().count("Redis has forgotten that this worker held it") == 3
    with redis.Redis.from_url(broker.redis_url) as db:
        # A pool of threads acknowledges when the loop comes round.
        eventually(lambda: not list(db.scan_iter("celery_resilience:held:*")))
        assert worker.terminate() == 0
        assert db.hlen("celery_resilience:takes") == 0, "a worker that leaves takes its own off"


@pytest.fixture
def failover(request: pytest.FixtureRequest, redis_broker: Broker) -> Iterator[Failover]:
    binary = request.config.getoption("redis_server")
    with contextlib.ExitStack() as stack:
        yield Failover(binary, stack, redis_broker)


class Failover:
    """A master and a replica, behind one door."""

    def __init__(self, binary: str, stack: contextlib.ExitStack, broker: Broker) -> None:
        self.master = stack.enter_context(EmbeddedServer(binary=binary, port=0))
        follow = ["--replicaof", "127.0.0.1", str(self.master.port)]
        self.replica = stack.enter_context(EmbeddedServer(binary=binary, port=0, options=follow))
        self.door = Door(int(self.master.port or 0))
        stack.callback(self.door.close)
        self._client = stack.enter_context(redis.Redis(port=int(self.replica.port or 0)))
        self.broker = replace(broker, broker_url=f"redis://127.0.0.1:{self.door.port}/0")

    def follows(self) -> None:
        """Wait until the replica has all that the master has."""
        with redis.Redis(port=int(self.master.port or 0)) as master:
            eventually(lambda: master.wait(1, 100) == 1, message="the replica follows")

    def stops_following(self) -> None:
        """What the master is given from now on the replica never hears of."""
        self._client.replicaof("NO", "ONE")

    def happens(self) -> None:
        """The master dies, and the replica takes its place."""
        self.door.cut()
        self.master.kill()
        self.door.lead_to(int(self.replica.port or 0))
        self.door.mend()


@pytest.mark.parametrize("name", ["redis", "kombu-redis"])
def test_forgotten_by_a_replica_that_was_behind(
    failover: Failover, name: str, tmp_path: Path, start_worker: StartWorker
) -> None:
    """What the worker had in hand, and what it had received and not begun."""
    broker = replace(failover.broker, name=name)
    with contextlib.closing(Client(broker, tmp_path / "record")) as client:
        pool = "threads" if "kombu" in name else "prefork"
        env = {**client.env, "AHEAD": "3"}  # as when quick tasks were run
        worker = start_worker(OWNED, broker, pool=pool, concurrency=3, env=env)
        assert client.value(client.send("flaky", "before", 0))
        failover.follows()
        failover.stops_following()
        bodies = Bodies(client)
        bodies.run()
        waiting = [client.send("flaky", f"received-{n}", 0) for n in range(3)]
        eventually(lambda: worker.log().count("received") >= 7)
        failover.happens()
        eventually(lambda: "Connected to " in worker.log().partition("broker lost")[2])
        client.app.pool.force_close_all()
        bodies.end()
        for result in waiting:
            assert client.value(result)
        lies_nowhere_else(client)


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_transient_messages_of_a_rabbitmq_that_was_restarted(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    """It does not deliver them again."""
    start_worker(OWNED, broker, pool="threads", concurrency=4, env=client.env)
    bodies = Bodies(client, delivery_mode="transient")
    bodies.run()
    rabbitmq_server.kill()
    rabbitmq_server.start()
    bodies.end()
    lies_nowhere_else(client)


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
@pytest.mark.parametrize("queue", ["fleeting", "unheld"])
def test_queue_that_goes_with_the_connection(
    broker: Broker,
    queue: str,
    client: Client,
    rabbitmq_server: RabbitServer,
    start_worker: StartWorker,
) -> None:
    """It is made again when the worker is connected again, and is empty then."""
    # As the worker declares it.
    known = Queue(queue, auto_delete=queue == "fleeting")
    client.app.conf.task_queues = [*client.app.conf.task_queues, known]
    worker = start_worker(
        OWNED, broker, pool="threads", concurrency=4, queues=queue, env=client.env
    )
    bodies = Bodies(client, queue=queue)
    bodies.run()
    close = (
        '[rabbit_networking:close_connection(P, "cut") || P <- rabbit_networking:connections()].'
    )
    rabbitmq_server.evaluate(close)
    eventually(lambda: "Connected to " in worker.log().partition("broker lost")[2])
    bodies.end()
    assert "delivers it again" not in worker.log()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_log_says_that_a_letter_lies_there_when_it_does(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Until then it says that the letter is pending."""
    worker = start_worker(OWNED, broker, env=client.env)
    with redis.Redis.from_url(broker.redis_url) as db:
        db.set("dead_letter", "no list")
        client.send("refused", "r")
        eventually(lambda: " pending for dead_letter" in worker.log())
        assert " in dead_letter: permanent" not in worker.log()
        db.delete("dead_letter")
    eventually(lambda: " in dead_letter: permanent" in worker.log(), timeout=30)
    assert len(client.letters()) == 1
    assert worker.log().count(" in dead_letter: permanent") == 1


@REDIS
def test_full_redis_takes_what_replaces_its_original(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Retries, letters and replays go on: that is how it is emptied."""
    start_worker(OWNED, broker, concurrency=4, env=client.env)
    bodies = Bodies(client)
    bodies.run()
    with redis.Redis.from_url(broker.redis_url) as db:
        db.config_set("maxmemory", 1)
        try:
            bodies.gate.touch()
            started = client.executions
            eventually(lambda: started()["b-now"] == started()["b-retry"] == 2)
            eventually(client.letters, message="there is a letter")
            with DeadLetters(client.app) as letters:
                (replayed,) = letters.replay("all")
            assert replayed.result is ReplayResult.REPLAYED
            eventually(lambda: started()["b-letter"] == 2)
            assert client.letters() == []
        finally:
            db.config_set("maxmemory", 0)
