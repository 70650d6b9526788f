"""Retries that wait in Redis: entered in one step, moved late and never early, by anybody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from celery_resilience.brokers.base import NotOurs
from celery_resilience.brokers.redis.broker import RedisBroker
from celery_resilience.brokers.redis.housekeeping import Housekeeper
from celery_resilience.brokers.redis.scheduled import ScheduledRetries
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.settings import Settings
from tests.integration.test_brokers import Result, Rig, ack, rig
from tests.servers import eventually
from tests.worker import Broker

pytestmark = pytest.mark.parametrize("rig", ["redis"], indirect=True)
__all__ = ["rig"]

LISTS = "celery_resilience:waiting"
WORK = f"{LISTS}:work"


@pytest.fixture
def db(redis_broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_broker.redis_url) as client:
        yield client


def hold(rig: Rig, delay: float, header: str = "{}", **options: Any) -> None:
    rig.publish([[1], {}, {}], **options)
    delivery, result = rig.receive(), Result()
    rig.moves.schedule(delivery, delivery.envelope.with_header(header), delay, result)
    ack(delivery, result)


def waiting(rig: Rig) -> Any:
    assert isinstance(rig.moves, RedisBroker)
    return rig.moves.waiting


def test_retry_waits_outside_of_its_queue(rig: Rig, db: redis.Redis) -> None:
    """What was received has gone, and its copy is due by the server's clock and has no eta."""
    hold(rig, 60, headers={"task": "t", "id": "1", "retries": 0})
    assert (db.llen("work"), db.hlen("unacked"), db.zcard("unacked_index")) == (0, 0, 0)
    (found,) = waiting(rig).browse()
    assert waiting(rig).now() + 55 < found.due <= waiting(rig).now() + 60
    assert found.envelope.headers == {
        "task": "t", "id": "1", "retries": 0, "eta": None, HEADER: "{}",
    }  # fmt: skip
    assert waiting(rig).counts() == {"work": 1}


def test_message_that_is_no_longer_ours_does_not_wait(rig: Rig, db: redis.Redis) -> None:
    rig.publish([[], {}, {}])
    delivery, result = rig.receive(), Result()
    db.delete("unacked")
    rig.moves.schedule(delivery, delivery.envelope, 60, result)
    assert isinstance(result.only, NotOurs)
    assert db.exists(LISTS, WORK) == 0


def test_due_retry_is_moved_and_nothing_else(rig: Rig, db: redis.Redis) -> None:
    hold(rig, 0.3)
    hold(rig, 60)
    looked = waiting(rig).move_due("w")
    assert (looked.moved, looked.turn) == (0, True)
    assert 0 < looked.next_in <= 0.301
    moved = eventually(lambda: (look := waiting(rig).move_due("w")).moved and look)
    assert 59 < moved.next_in < 60.001
    assert (db.llen("work"), db.zcard(WORK)) == (1, 1)


def test_retry_is_never_moved_early(rig: Rig, db: redis.Redis) -> None:
    """At every look, all that is due by the server's clock has been moved, and no more."""
    for n in range(30):
        hold(rig, 0.01 * n)
    due = dict(db.zrange(WORK, 0, -1, withscores=True))
    while db.exists(LISTS):
        waiting(rig).move_due("w")
        now = waiting(rig).now()
        assert all(due.get(payload, 0) <= now for payload in db.lrange("work", 0, -1))
    assert db.llen("work") == 30


def test_list_that_can_take_nothing_is_in_nobodys_way(rig: Rig, db: redis.Redis) -> None:
    hold(rig, 0.01, priority=9)
    hold(rig, 0.01)
    (blocked,) = [key for key in db.zrange(LISTS, 0, -1) if key != b"work"]
    db.set(blocked, "this is no list")

    def move() -> bool:
        waiting(rig).move_due("w")
        return bool(db.llen("work"))

    eventually(move)
    looked = waiting(rig).move_due("w")
    assert (looked.moved, looked.next_in is not None and looked.next_in > 25) == (0, True)
    assert db.zcard(f"{LISTS}:{blocked.decode()}") == 1, "it goes on waiting"
    assert db.get(blocked) == b"this is no list"


def test_priority_is_kept(rig: Rig, db: redis.Redis) -> None:
    hold(rig, 0.01, priority=9)
    hold(rig, 0.01, priority=0)
    eventually(lambda: waiting(rig).move_due("w").next_in is None)
    assert rig.receive().envelope.properties["priority"] == 0
    assert waiting(rig).counts() == {}


def test_turn_is_one_workers_until_it_is_over(rig: Rig) -> None:
    hold(rig, 60)
    assert waiting(rig).move_due("a").turn
    assert not waiting(rig).move_due("b").turn
    assert waiting(rig).move_due("a").turn


def test_everybody_moves_whoever_has_the_turn(rig: Rig, db: redis.Redis) -> None:
    hold(rig, 0.01)
    waiting(rig).move_due("a")
    eventually(lambda: waiting(rig).move_due("b").moved or db.llen("work"))
    assert db.llen("work") == 1


def test_operator_can_let_it_run_now_or_later(rig: Rig, db: redis.Redis) -> None:
    """Each is one step: of two operators, one does it."""
    hold(rig, 60)
    hold(rig, 50)
    first, second = waiting(rig).browse()
    assert first.due < second.due
    assert rig.moves.put(first, first.envelope, "work")
    assert not rig.moves.put(first, first.envelope, "work")
    assert not waiting(rig).delay(first, 1.0)
    assert db.llen("work") == 1
    assert waiting(rig).delay(second, second.due + 100)
    (later,) = waiting(rig).browse()
    assert later.due == pytest.approx(second.due + 100, abs=0.001)
    assert db.zscore(LISTS, "work") == pytest.approx(later.due, abs=0.001)
    assert rig.moves.put(later, later.envelope, "work")
    assert db.exists(LISTS, WORK) == 0


def test_many_are_looked_at_in_the_order_that_they_are_due(rig: Rig, db: redis.Redis) -> None:
    """Over the ends of pages, several due at once; what is moved meanwhile shifts no other."""
    payloads = {f'{{"n": {n}, "properties": {{}}}}': 1000.0 + n // 7 for n in range(950)}
    db.zadd(WORK, payloads)
    db.zadd(LISTS, {"work": 1000})
    found = list(waiting(rig).browse())
    assert [each.due for each in found] == sorted(payloads.values())
    assert len({each.key for each in found}) == 950
    looked = []
    for each in waiting(rig).browse():
        looked.append(each)
        waiting(rig).put(each, "{}", "work")
    assert {each.key for each in looked} == {each.key for each in found}


def test_worker_that_held_it_for_a_short_time_wakes_for_it(rig: Rig, db: redis.Redis) -> None:
    """Though another one has the turn, and does not know of it yet."""
    waiting(rig).move_due("another")
    hold(rig, 600)
    waiting(rig).move_due("another")
    assert isinstance(rig.moves, RedisBroker)
    housekeeper: Housekeeper = rig.moves.housekeeper(rig.moves.lease_owner())
    woken: list[bool] = []
    housekeeper.wake = lambda: woken.append(True)
    pause = housekeeper.run_once()
    assert pause > 0.5
    hold(rig, 0.2)
    assert woken == [True]
    assert housekeeper.run_once() <= 0.2
    eventually(lambda: housekeeper.run_once() > 0.5, message="it waits for what is still to come")
    housekeeper.close()


def test_countdown_is_what_the_setting_says(rig: Rig, db: redis.Redis) -> None:
    rig.moves = RedisBroker(rig.connection, Settings(hold_retries="worker"))
    hold(rig, 60)
    assert db.exists(LISTS) == 0
    assert rig.receive().envelope.fields()["eta"] is not None


def test_entries_of_the_first_version_are_read(rig: Rig, db: redis.Redis) -> None:
    """Key names and payload as they were in 0.1: what waits there survives an upgrade."""
    payload = (
        '{"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": '
        '"utf-8", "headers": {"task": "t", "id": "1", "retries": 1, "eta": null, '
        '"celery_resilience": "{\\"v\\":1,\\"first\\":1.0,\\"count\\":1,\\"attempts\\":[],'
        '\\"losses\\":0,\\"lineage\\":[]}"}, "properties": {"correlation_id": "1", '
        '"body_encoding": "base64", "delivery_tag": "x", "delivery_info": {"exchange": "", '
        '"routing_key": "work"}}}'
    )
    db.zadd("celery_resilience:waiting:work", {payload: 1.0})
    db.zadd("celery_resilience:waiting", {"work": 1.0})
    assert waiting(rig).move_due("w").moved == 1
    delivery = rig.receive()
    assert delivery.envelope.fields()["retries"] == 1
    assert History.loads(delivery.envelope.headers[HEADER]).count == 1
    db.hset("celery_resilience:held:dead", "tag", f"work\n{payload}")
    assert isinstance(rig.moves, RedisBroker)
    assert rig.moves.leases.requeue("dead") == 1
    assert db.llen("work") == 1


@pytest.mark.parametrize("place", ["eu:mail", "eu:mail:3", "mail", "mail:3", "mail:2", "0", "3"])
def test_queue_may_have_the_separator_in_its_name(db: redis.Redis, rig: Rig, place: str) -> None:
    """``sep=":"`` is what Celery's documentation shows. A number is a name too."""
    assert ScheduledRetries(db, "", ":").queue_of(place) == place.removesuffix(":3")


@pytest.mark.parametrize("name", ["0", "3", "mail\x06\x163"])
def test_queue_whose_name_looks_like_a_priority_gets_its_retries_back(
    rig: Rig, db: redis.Redis, name: str
) -> None:
    assert isinstance(rig.moves, RedisBroker)
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    delivery = replace(delivery, envelope=replace(delivery.envelope, queue=name))
    copy = delivery.envelope.with_header(replace(History(), queue=name).dumps())
    result = Result()
    rig.moves.schedule(delivery, copy, 60, result)
    ack(delivery, result)
    (found,) = waiting(rig).browse([name])
    assert found.envelope.queue == name
    assert rig.moves.put(found, found.envelope, found.envelope.queue)
    assert db.llen(name) == 1


@pytest.mark.parametrize("others", [0, 100])
def test_retries_that_are_revoked_together_are_looked_for_together(
    rig: Rig, db: redis.Redis, others: int
) -> None:
    """Whatever characters their ids are made of."""
    ids = ["a*[b]", 'a"\\b', "größe"]
    for id_ in [*ids, "left"]:
        hold(rig, 60, headers={"task": "t", "id": id_}, correlation_id=id_)
    before = _scans(db)
    assert isinstance(rig.moves, RedisBroker)
    taken = list(rig.moves.take_scheduled({*ids, *map(str, range(others))}))
    assert {f.envelope.headers["id"] for f in taken} == {*ids}
    assert [f.envelope.headers["id"] for f in waiting(rig).browse()] == ["left"]
    assert _scans(db) - before <= len(ids) + 1, "one may be written in two ways"
    assert db.llen("work") == 0
    for found in taken:
        rig.moves.schedule_again(found)
    assert sorted(waiting(rig).browse(), key=str) == sorted(waiting(rig).browse(), key=str)
    assert waiting(rig).counts() == {"work": 4}


def _scans(db: redis.Redis) -> int:
    return int(db.info("commandstats").get("cmdstat_zscan", {"calls": 0})["calls"])
