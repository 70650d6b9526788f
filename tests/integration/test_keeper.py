"""Leases, and what is held under them, on a real server: as one process sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from celery_resilience.brokers.base import NotOurs
from celery_resilience.brokers.redis import leases
from celery_resilience.brokers.redis.broker import RedisBroker
from celery_resilience.brokers.redis.housekeeping import Housekeeper
from celery_resilience.brokers.redis.lease_qos import take_over
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases
from celery_resilience.testing.server import EmbeddedServer
from tests.integration.test_brokers import Result, Rig, rig
from tests.servers import eventually
from tests.worker import Broker

pytestmark = pytest.mark.parametrize("rig", ["redis"], indirect=True)
__all__ = ["rig"]

WORKERS = "celery_resilience:workers"
TAKES = "celery_resilience:takes"
DEAD = "celery_resilience:held:dead"
#: For GRACE: the server has been up for longer, or never will be.
AT_ONCE, NEVER = 0.0, 1e9


@pytest.fixture
def db(redis_broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_broker.redis_url) as client:
        yield client


@pytest.fixture
def owner(rig: Rig) -> LeaseOwner:
    """Holds what *rig* receives."""
    owner = LeaseOwner()
    assert take_over(rig.channel, owner)
    return owner


@pytest.fixture
def housekeeper(rig: Rig, owner: LeaseOwner) -> Iterator[Callable[[], Housekeeper]]:
    """``housekeeper()``: one as after a reconnection; that it looks is that it renews the lease."""
    made: list[Housekeeper] = []

    def make() -> Housekeeper:
        assert isinstance(rig.moves, RedisBroker)
        made.append(rig.moves.housekeeper(owner))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "RENEW", 0.0)
        yield make
    for each in made:
        each.close()


def dies(db: redis.Redis, *payloads: str) -> None:
    """A worker has died that held *payloads*, lists in front."""
    db.zadd(WORKERS, {"dead": 1.0})
    db.hset(DEAD, mapping={f"tag-{n}": payload for n, payload in enumerate(payloads)})


def payload(number: int = 0) -> str:
    properties = {"delivery_tag": f"tag-{number}", "delivery_info": {"routing_key": "work"}}
    return json.dumps({"body": "", "headers": {"id": str(number)}, "properties": properties})


# Who is believed to be dead


def test_leases_are_not_believed_soon_after_the_servers_start(
    rig: Rig,
    db: redis.Redis,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All have run out while it was down. An operator is not told of them either."""
    dies(db, f"work\n{payload()}")
    monkeypatch.setattr(leases, "GRACE", NEVER)
    housekeeper().run_once()
    assert (db.llen("work"), db.hlen(DEAD)) == (0, 1)
    assert Leases(db, "").orphans() == {}
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    assert Leases(db, "").orphans() == {"dead": 1}
    housekeeper().run_once()
    assert (db.llen("work"), db.exists(DEAD), db.zscore(WORKERS, "dead")) == (1, 0, None)


def test_leases_are_not_believed_soon_after_an_outage(
    rig: Rig,
    db: redis.Redis,
    redis_server: EmbeddedServer,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By one who had believed them before it."""
    dies(db, f"work\n{payload()}")
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    looking = housekeeper()
    looking.run_once()
    assert db.llen("work") == 1
    redis_server.kill()
    with pytest.raises(RedisError):
        looking.run_once()
    redis_server.start()
    dies(db, f"work\n{payload(1)}")
    monkeypatch.setattr(leases, "GRACE", NEVER)
    looking.run_once()
    assert (db.llen("work"), db.hlen(DEAD)) == (1, 1)


@pytest.mark.parametrize("reconnects", [False, True])
def test_worker_that_was_late_does_not_believe_that_others_have_died(
    rig: Rig,
    db: redis.Redis,
    owner: LeaseOwner,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
    reconnects: bool,
) -> None:
    """A cut network, a frozen server or a clock that was set: they may be about to say so too."""
    assert isinstance(rig.moves, RedisBroker)
    monkeypatch.setattr(leases, "GRACE", 1e6)
    monkeypatch.setattr(Leases, "up_for", lambda leases: math.inf)
    looking = housekeeper()
    looking.run_once()
    db.zincrby(WORKERS, -0.6 * leases.LEASE, owner.id)
    dies(db, f"work\n{payload()}")
    if reconnects:
        rig.moves.consume_for(rig.channel, owner)
        looking = housekeeper()
    looking.run_once()
    assert (db.llen("work"), db.hlen(DEAD)) == (0, 1)
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    looking.run_once()
    assert (db.llen("work"), db.hlen(DEAD)) == (1, 0), "but they are looked at again"


def test_worker_that_is_alive_is_neither_dead_nor_forgotten(rig: Rig, db: redis.Redis) -> None:
    leases, alive, other = Leases(db, ""), LeaseOwner(), LeaseOwner()
    assert leases.renew(alive) == (1, [])
    assert leases.renew(other) == (2, [])
    assert not leases.forget(alive.id, if_dead=True)
    assert set(leases.workers()) == {alive.id, other.id}
    db.zadd(WORKERS, {alive.id: 1.0})
    assert leases.renew(other) == (2, [alive.id])
    assert leases.forget(alive.id, if_dead=True)
    assert leases.forget(other.id), "it says so itself"
    assert leases.workers() == {}


def test_worker_that_comes_back_while_its_messages_are_requeued_is_not_forgotten(
    rig: Rig,
    db: redis.Redis,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it takes next would be in a hash that nobody knows."""
    dies(db, f"work\n{payload()}")
    requeue = Leases.requeue

    def slowly(self: Leases, worker: str) -> int:
        given = requeue(self, worker)
        db.zadd(WORKERS, {worker: 1e12})
        return given

    monkeypatch.setattr(Leases, "requeue", slowly)
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    housekeeper().run_once()
    assert db.llen("work") == 1
    assert db.zscore(WORKERS, "dead") is not None


def test_among_many_workers_each_renews_its_lease_in_time(
    rig: Rig,
    db: redis.Redis,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The more there are, the less often each looks for what is due; but never so seldom."""
    db.zadd(WORKERS, {f"w{n}": 1e12 for n in range(2000)})
    monkeypatch.setattr(leases, "RENEW", 5.0)
    looking = housekeeper()
    assert looking.run_once() <= 5
    assert looking.run_once() <= 5


def test_server_whose_memory_is_full_hears_who_is_alive_and_can_be_emptied(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    """Without it every lease would run out, and what would make room could not be run."""
    assert isinstance(rig.moves, RedisBroker)
    leases, waiting = rig.moves.leases, rig.moves.waiting
    rig.publish([[], {}, {}])
    delivery, done = rig.receive(), Result()
    for each, due in ((payload(1), 1.0), (payload(2), 2e9)):
        db.zadd("celery_resilience:waiting:work", {each: due})
        db.zadd("celery_resilience:waiting", {"work": due}, nx=True)
    dies(db, f"work\n{payload(3)}")
    db.config_set("maxmemory", 1)
    try:
        assert leases.renew(owner) == (2, ["dead"])
        assert leases.requeue("dead") == 1
        assert rig.moves.record_start(delivery, delivery.envelope)
        assert waiting.move_due("alive").moved == 1
        assert all(waiting.put(found, found.key[1], "work") for found in list(waiting.browse()))
        assert db.llen("work") == 3
        rig.moves.schedule(delivery, delivery.envelope, 60, done)
    finally:
        db.config_set("maxmemory", 0)
    assert done.only is None
    assert (db.exists(owner.key), sum(waiting.counts().values())) == (0, 1)


def test_message_that_kombu_took_from_a_full_server_is_held(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    """By then it is in no list any more."""
    rig.publish([[], {}, {}])
    rig.receive().ack()
    rig.publish([[], {}, {}])
    db.config_set("maxmemory", 1)
    try:
        delivery = rig.receive()
        assert db.hkeys(owner.key) == [delivery.message.delivery_tag.encode()]
        delivery.ack()
    finally:
        db.config_set("maxmemory", 0)
    assert db.exists("work", owner.key) == 0


# How it is given back


def test_requeued_message_is_another_delivery(rig: Rig, db: redis.Redis, owner: LeaseOwner) -> None:
    """Into the list of its priority; the late end of the first one takes nothing from it, though
    the same worker has both."""
    rig.publish([[], {}, {}], priority=9)
    first = rig.receive().message
    rig.channel.basic_qos(0, 2, False)
    assert Leases(db, "").requeue(owner.id) == 1
    assert (db.llen("work\x06\x169"), db.llen("work")) == (1, 0)
    second = rig.receive().message
    assert second.delivery_tag != first.delivery_tag
    assert second.headers["redelivered"] is True
    assert second.delivery_info["redelivered"] is True
    first.ack()
    assert db.hkeys(owner.key) == [second.delivery_tag.encode()]
    second.reject(requeue=True)
    assert (db.llen("work\x06\x169"), db.exists(owner.key)) == (1, 0)


def test_message_that_cannot_be_requeued_is_in_nobodys_way_and_kept(
    rig: Rig,
    db: redis.Redis,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is no message is given back as it is; whose list is no list stays with its worker."""
    db.set("blocked", "no list")
    dies(db, "work\nno message", f"blocked\n{payload()}", f"work\n{payload(2)}")
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    housekeeper().run_once()
    assert db.llen("work") == 2
    assert b"no message" in db.lrange("work", 0, -1)
    assert db.hkeys(DEAD) == [b"tag-1"]
    assert db.zscore(WORKERS, "dead") is not None, "somebody has to know of what it holds"
    db.delete("blocked")
    housekeeper().run_once()
    assert db.llen("blocked") == 1
    assert db.zscore(WORKERS, "dead") is None


def test_message_is_requeued_by_one_of_several_workers(
    rig: Rig, db: redis.Redis, redis_broker: Broker
) -> None:
    dies(db, *(f"work\n{payload(n)}" for n in range(300)))
    together = Barrier(4)

    def requeue() -> int:
        with redis.Redis.from_url(redis_broker.redis_url) as client:
            together.wait()
            return Leases(client, "").requeue("dead")

    with ThreadPoolExecutor(4) as threads:
        given = [threads.submit(requeue) for _ in range(4)]
        assert sum(one.result() for one in given) == 300
    assert sorted(int(json.loads(each)["headers"]["id"]) for each in db.lrange("work", 0, -1)) == [
        *range(300)
    ]


def test_channel_that_closes_gives_back_nothing(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    """What runs goes on; and it may be that there is no server to give it to."""
    rig.publish([[], {}, {}])
    rig.receive()
    rig.channel.close()
    assert (db.llen("work"), db.hlen(owner.key)) == (0, 1)
    assert not rig.channel.qos._delivered


def test_start_is_written_down_where_it_is_held_and_nowhere_else(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    assert isinstance(rig.moves, RedisBroker)
    noted = delivery.envelope.with_header('{"starts": 1}')
    assert rig.moves.record_start(delivery, noted)
    ((tag, value),) = db.hgetall(owner.key).items()
    assert (tag, b"starts" in value) == (delivery.message.delivery_tag.encode(), True)
    Leases(db, "").requeue(owner.id)
    assert not rig.moves.record_start(delivery, noted), "another worker may have it by now"
    assert db.exists(owner.key) == 0
    assert rig.channel.qos._delivered.keys() <= rig.channel.qos._dirty, "it would keep its place"


# What could not be let go


def test_message_done_while_the_server_is_away_is_acked_when_it_is_back(
    rig: Rig,
    db: redis.Redis,
    redis_server: EmbeddedServer,
    owner: LeaseOwner,
    housekeeper: Callable[[], Housekeeper],
) -> None:
    """It is done: nobody shall have it again."""
    rig.publish([[], {}, {}])
    message: Any = rig.receive().message
    redis_server.kill()
    message.ack()
    redis_server.start()
    assert db.hlen(owner.key) == 1
    housekeeper().run_once()
    assert db.hlen(owner.key) == 0


# Who is known


def test_worker_that_was_taken_for_dead_is_known_again_with_its_next_take(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    """It may die before it says so itself. What it held was put back, not forgotten."""
    leases = Leases(db, "")
    leases.renew(owner)
    rig.publish([[], {}, {}])
    first = replace(rig.receive(), ack=lambda: None)
    leases.requeue(owner.id)
    db.zadd(WORKERS, {owner.id: 1.0})
    assert leases.forget(owner.id, if_dead=True)
    done = Result()
    rig.moves.schedule(first, first.envelope, 0, done)
    assert isinstance(done.only, NotOurs)
    rig.channel.basic_qos(0, 2, False)
    rig.receive()
    assert (db.hlen(owner.key), db.llen("work")) == (1, 0)
    assert db.zscore(WORKERS, owner.id) is not None
    done = Result()
    rig.moves.schedule(first, first.envelope, 0, done)
    assert isinstance(done.only, NotOurs), "nor does the next take change that"


def test_worker_that_died_long_ago_is_not_remembered(
    rig: Rig, db: redis.Redis, owner: LeaseOwner
) -> None:
    db.hset(TAKES, mapping={"old": 3, "alive": 4})
    db.zadd(WORKERS, {"old": 1.0, "alive": 1e12})
    leases = Leases(db, "")
    assert leases.forget("old", if_dead=True)
    assert db.hgetall(TAKES) == {b"old": b"-3", b"alive": b"4"}
    db.zadd("celery_resilience:dead", {"old": 1.0, "alive": 1.0})
    assert leases.forget("another", if_dead=True)
    assert db.hgetall(TAKES) == {b"alive": b"4"}
    assert leases.forget("alive")
    assert db.exists(TAKES, "celery_resilience:dead") == 0


def test_messages_of_a_worker_that_nobody_knows_are_requeued(
    rig: Rig,
    db: redis.Redis,
    owner: LeaseOwner,
    housekeeper: Callable[[], Housekeeper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator sees it at once."""
    db.hset(DEAD, "tag", f"work\n{payload()}")
    db.mset({f"key-{n}": n for n in range(3000)})
    monkeypatch.setattr(leases, "GRACE", AT_ONCE)
    assert Leases(db, "").orphans() == {"dead": 1}
    monkeypatch.setattr(leases, "LEASE", 0.5)
    looking = housekeeper()

    def given_back() -> bool:
        looking.run_once()
        return db.llen("work") == 1

    eventually(given_back)
    assert db.exists(DEAD) == 0
    assert Leases(db, "").orphans() == {}
