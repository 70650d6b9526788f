"""What a worker holds on Redis: its own while it lives, given back when it has died."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Queue

from celery_resilience.brokers.redis.leases import Leases
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
POOLS = ["prefork", "threads", "solo", "gevent"]
#: Seconds; so short that what is held longer than allowed shows.
LEASE = {"LEASE": "3"}
#: Quick tasks were run: the worker takes more than it can begin, up to its prefetch count.
QUICK = {"AHEAD": "6"}
#: kombu's transport always does.
KOMBUS = {"CELERY_WORKER_REDIS_TRANSPORT": "kombu"}

StartWorker = Callable[..., Worker]

both_ways = pytest.mark.parametrize("way", [QUICK, KOMBUS], ids=["ours", "kombus"])
pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture
def db(broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(broker.redis_url) as client:
        yield client


def held(db: redis.Redis) -> int:
    return sum(db.hlen(key) for key in db.scan_iter("celery_resilience:held:*"))


@pytest.mark.parametrize(
    ("pool", "way"),
    [*((pool, QUICK) for pool in POOLS), ("prefork", KOMBUS)],
    ids=[*POOLS, "kombus"],
)
def test_messages_of_a_killed_worker_are_run_by_another(
    broker: Broker, pool: str, way: dict[str, str], client: Client, db: redis.Redis,
    start_worker: StartWorker,
) -> None:  # fmt: skip
    """Running, received and waiting tasks: each is run to its end."""
    first = start_worker(SHOP, broker, pool=pool, env={**client.env, **LEASE, **way})
    gate = client.record.with_name("gate")
    running = [client.send("waits", f"w-{n}", str(gate)) for n in range(2)]
    received = [client.send("flaky", f"flaky-{n}", 1) for n in range(6)]
    # The loop of two waits for room. A message on its way through kombu's dies with the worker.
    least = {"solo": 1, "gevent": 3}.get(pool, 8)
    eventually(lambda: client.executions()["w-0"] == 1 and held(db) >= least)
    first.kill()
    gate.touch()  # for those that had not begun
    start_worker(SHOP, broker, pool=pool, env={**client.env, **LEASE})
    for result in running + received:
        assert client.value(result)
    assert client.executions()["w-0"] == 2
    assert all(client.executions()[f"flaky-{n}"] == 2 for n in range(6))
    eventually(lambda: db.zcard("celery_resilience:workers") == 1)
    eventually(lambda: held(db) == 0)


def test_retries_wait_in_redis_and_need_no_worker_of_their_queue(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """The worker that held it is dead, and another one moves it, whatever it consumes itself."""
    worker = start_worker(SHOP, broker, queues="other", env=client.env)
    client.send("asks", "asks", 3, queue="other")
    eventually(lambda: db.zcard("celery_resilience:waiting:other") == 1)
    eventually(lambda: held(db) == 0)
    worker.kill()
    assert client.count("other") == 0
    start_worker(SHOP, broker, queues="shop", env=client.env)
    eventually(lambda: client.count("other") == 1)
    assert db.zcard("celery_resilience:waiting") == 0


@pytest.mark.parametrize("pool", POOLS)
def test_task_longer_than_the_lease_is_run_once(
    broker: Broker, pool: str, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """A living worker, however busy, keeps what it holds; so does one that goes down."""
    worker = start_worker(SHOP, broker, pool=pool, env={**client.env, **LEASE})
    start_worker(SHOP, broker, pool="threads", queues="other", env={**client.env, **LEASE})
    result = client.send("slow", "slow", 6)
    eventually(lambda: client.executions()["slow"] == 1)
    worker.send(signal.SIGTERM)
    assert client.value(result) == "slow"
    assert worker.wait() == 0
    assert client.executions()["slow"] == 1
    assert client.count("shop") == 0, "nobody has given it back"
    eventually(lambda: held(db) == 0)


@both_ways
def test_unstarted_message_is_requeued_at_a_warm_shutdown(
    broker: Broker, way: dict[str, str], client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    worker = start_worker(SHOP, broker, concurrency=1, env={**client.env, **way})
    client.send("slow", "slow", 2)
    for n in range(6):
        client.send("flaky", f"flaky-{n}", 0)
    eventually(lambda: client.executions()["slow"] == 1 and held(db) == 4)
    assert worker.terminate() == 0
    ran = sum(client.executions().values())
    assert ran + client.count("shop") == 7
    assert held(db) == 0
    assert db.zcard("celery_resilience:workers") == 0


def test_messages_of_a_stock_consumer_are_not_touched(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    client.send("flaky", "theirs", 0, queue="other")
    received: list[Any] = []
    with (
        Connection(broker.broker_url) as connection,
        connection.Consumer([Queue("other")], on_message=received.append),
    ):
        while not received:
            connection.drain_events(timeout=5)
        db.zadd("celery_resilience:workers", {"dead": 1})
        start_worker(SHOP, broker, env={**client.env, **LEASE})
        assert client.value(client.send("flaky", "ours", 0))
        eventually(lambda: "dead" not in Leases(db, "").workers(), message="leases are looked at")
        assert client.executions()["theirs"] == 0
        assert db.hlen("unacked") == 1
        received[0].ack()


def test_worker_that_was_stopped_longer_than_its_lease_goes_on(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """What it held is run by another; it may be run twice, and its late end takes nothing away."""
    worker = start_worker(SHOP, broker, env={**client.env, **LEASE})
    result = client.send("slow", "slow", 8)
    eventually(lambda: client.executions()["slow"] == 1)
    worker.send(signal.SIGSTOP)
    other = start_worker(SHOP, broker, env={**client.env, **LEASE})
    eventually(lambda: client.executions()["slow"] == 2)
    worker.send(signal.SIGCONT)
    assert client.value(result) == "slow"
    eventually(lambda: held(db) == 0)
    assert client.value(client.send("flaky", "later", 0))
    assert client.count("shop") == 0
    assert other.terminate() == 0
    assert worker.terminate() == 0


@both_ways
def test_lost_connection_gives_back_only_what_had_not_begun(
    broker: Broker, way: dict[str, str], client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """Redis hangs up on everybody while one task runs and others have been received."""
    worker = start_worker(SHOP, broker, concurrency=1, env={**client.env, **way})
    slow = client.send("slow", "slow", 4)
    results = [client.send("flaky", f"flaky-{n}", 0) for n in range(6)]
    eventually(lambda: client.executions()["slow"] == 1 and held(db) == 4)
    db.client_kill_filter(_type="normal", skipme=True)
    db.client_kill_filter(_type="pubsub", skipme=True)
    for result in [slow, *results]:
        assert client.value(result)
    assert client.executions() == {"slow": 1, **{f"flaky-{n}": 1 for n in range(6)}}
    eventually(lambda: held(db) == 0)
    # Of the loss itself Celery 5.5 shows one.
    _, said, after = worker.log().partition("messages that had not been started")
    assert said
    assert "Traceback" not in after


def test_prefix_is_in_front_of_every_key(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    options = {"BROKER_OPTIONS": '{"global_keyprefix": "mine:"}', **client.env, **LEASE}
    client.app.conf.broker_transport_options = {"global_keyprefix": "mine:"}
    worker = start_worker(SHOP, broker, env=options)
    assert client.value(client.send("flaky", "flaky", 1))
    slow = client.send("slow", "slow", 600)
    eventually(lambda: client.executions()["slow"] == 1)
    worker.kill()
    second = start_worker(SHOP, broker, env=options)
    eventually(lambda: client.executions()["slow"] == 2)
    assert "expired, requeued 1 messages" in second.log()
    assert slow.id
    foreign = [key for key in db.scan_iter() if not key.startswith(b"mine:")]
    assert [key for key in foreign if b"pidbox" not in key and b"/" not in key] == []


@pytest.mark.parametrize("command", ["revoke", "terminate"])
def test_revoked_task_that_waits_is_dropped_though_all_workers_are_restarted(
    broker: Broker, command: str, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """However many are named at once."""
    worker = start_worker(SHOP, broker, env=client.env)
    revoked, too, other = (client.send("parks", name) for name in ("revoked", "too", "other"))
    eventually(lambda: db.zcard("celery_resilience:waiting:shop") == 3)
    named = {"task_id": [revoked.id, too.id], "signal": "TERM"}
    client.app.control.broadcast(command, arguments=named)
    # Celery stores the state at once, what waits is fetched a moment later.
    eventually(lambda: {client.state(revoked), client.state(too)} == {"REVOKED"})
    eventually(lambda: db.zcard("celery_resilience:waiting:shop") == 1)
    assert worker.terminate() == 0
    assert client.state(other) == "RETRY"
    assert client.executions() == {"revoked": 1, "too": 1, "other": 1}
    assert client.letters() == []


def test_scheduled_retry_is_dropped_by_whoever_is_told(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """Other workers know nothing of it: they must not get it, and not early. By id or by stamp."""
    told = start_worker(SHOP, broker, env=client.env)
    start_worker(SHOP, broker, env=client.env)
    results = [client.send("parks", f"id-{n}") for n in range(5)]
    for n in range(5):
        signature = client.app.signature("tests.apps.shop.parks", (f"stamp-{n}",))
        signature.stamp(order=f"order-{n % 2}")
        results.append(signature.apply_async())
    eventually(lambda: db.zcard("celery_resilience:waiting:shop") == 10)
    control = client.app.control
    control.revoke([each.id for each in results[:5]], destination=[told.name])
    control.revoke_by_stamped_headers({"order": "order-0"}, destination=[told.name])
    eventually(lambda: db.zcard("celery_resilience:waiting:shop") == 2)
    dropped = [*results[:6], results[7], results[9]]
    eventually(lambda: {client.state(each) for each in dropped} == {"REVOKED"})
    assert client.state(results[6]) == client.state(results[8]) == "RETRY"
    assert client.count("shop") == 0
    assert set(client.executions().values()) == {1}


def test_task_that_is_revoked_while_it_runs_is_not_retried(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """Not by a worker that has not heard of it either."""
    worker = start_worker(SHOP, broker, env=client.env)
    gate = client.record.with_name("gate")
    result = client.send("waits", "w", str(gate))
    eventually(lambda: client.executions()["w"] == 1)
    client.app.control.revoke(result.id, destination=[worker.name])
    eventually(lambda: "flagged as revoked" in worker.log())
    start_worker(SHOP, broker, env=client.env)
    worker.send(signal.SIGTERM)  # so that it is the other one that would take it
    gate.touch()
    eventually(lambda: client.state(result) == "REVOKED")
    assert worker.wait() == 0
    assert db.exists("celery_resilience:waiting") == 0
    assert client.executions() == {"w": 1}


def test_scheduled_retry_is_moved_by_a_worker_that_decides_nothing(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """``--no-resilience``: stock Celery decides, and a retry that waited is still run."""
    worker = start_worker(SHOP, broker, env=client.env)
    result = client.send("asks", "asks", 4)
    eventually(lambda: db.zcard("celery_resilience:waiting:shop") == 1)
    worker.kill()
    start_worker(SHOP, broker, env=client.env, arguments=["--no-resilience"])
    eventually(lambda: client.state(result) == "FAILURE", timeout=40)
    assert client.executions() == {"asks": 3}
    assert client.letters() == []
