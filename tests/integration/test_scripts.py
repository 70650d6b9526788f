"""The scripts that run inside Redis, stopped after each of their commands, and repeated.

A key has another type, a right is missing, the memory is full: whatever it is, afterwards the
message is in one place, and in the one where it belongs. Never two, never none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.redis.broker import RedisBroker
from celery_resilience.brokers.redis.lease_qos import take_over
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases
from celery_resilience.brokers.redis.scheduled import ScheduledRetries
from celery_resilience.brokers.redis.scripts import lua
from celery_resilience.messages.envelope import Envelope
from tests.integration.test_brokers import Result, Rig, rig
from tests.worker import Broker

pytestmark = pytest.mark.parametrize("rig", ["redis"], indirect=True)
__all__ = ["rig"]

OURS = "celery_resilience:"
MESSAGE = (
    '{"body": "", "headers": {"task": "t", "id": "the message"},'
    ' "properties": {"delivery_tag": "t", "delivery_info": {"routing_key": "work"}}}'
)


@pytest.fixture
def db(redis_broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_broker.redis_url) as client:
        yield client
        client.execute_command("ACL", "SETUSER", "default", "+@all")


@dataclass
class Step:
    """One thing that a script does: *act* raises or succeeds, and is repeated until it does."""

    act: Callable[[], None]
    #: Where the message is in the end.
    ends_in: str
    #: The keys that the script touches.
    keys: list[str]
    #: Whether it is a script that fails, and not something before it.
    names: bool = True


def check(problem: BaseException | None) -> None:
    if problem is not None:
        raise problem


def delivery(rig: Rig, db: redis.Redis, owner: LeaseOwner) -> Delivery:
    assert take_over(rig.channel, owner)
    db.hset(owner.key, "t", f"work\n{MESSAGE}")
    db.hset(f"{OURS}takes", owner.id, 1)
    message = SimpleNamespace(channel=rig.channel, delivery_tag="t", take=1)
    envelope = Envelope.from_wire(json.loads(MESSAGE), "work")
    return Delivery(message, envelope, ack=lambda: None)


def settle(rig: Rig, db: redis.Redis) -> Step:
    owner = LeaseOwner()
    message = delivery(rig, db, owner)

    def act() -> None:
        result = Result()
        rig.moves.dead_letter(message, message.envelope, "dead_letter", {}, result)
        check(result.only)

    return Step(act, "dead_letter", [owner.key, "unacked_index", "dead_letter", f"{OURS}takes"])


def hold(rig: Rig, db: redis.Redis) -> Step:
    owner = LeaseOwner()
    message = delivery(rig, db, owner)

    def act() -> None:
        result = Result()
        rig.moves.schedule(message, message.envelope, 60, result)
        check(result.only)

    keys = [owner.key, "unacked_index", f"{OURS}waiting", f"{OURS}waiting:work", f"{OURS}takes"]
    return Step(act, f"{OURS}waiting:work", keys)


def note(rig: Rig, db: redis.Redis) -> Step:
    owner = LeaseOwner()
    message = delivery(rig, db, owner)

    def act() -> None:
        assert isinstance(rig.moves, RedisBroker)
        assert rig.moves.record_start(message, message.envelope)

    return Step(act, owner.key, [owner.key, f"{OURS}takes"])


def release(rig: Rig, db: redis.Redis) -> Step:
    db.lpush("dead_letter", "another", MESSAGE, "a third")
    _, found, _ = rig.moves.browse("dead_letter")
    return Step(
        lambda: rig.moves.republish(found, found.envelope, "work"), "work", ["dead_letter", "work"]
    )


def waits(db: redis.Redis, due: float) -> list[str]:
    db.zadd(f"{OURS}waiting:work", {MESSAGE: due})
    db.zadd(f"{OURS}waiting", {"work": due})
    return [f"{OURS}waiting", f"{OURS}waiting:work", "work"]


def put(rig: Rig, db: redis.Redis) -> Step:
    assert isinstance(rig.moves, RedisBroker)
    moves, keys = rig.moves, waits(db, 2e9)
    (found,) = moves.waiting.browse()

    def act() -> None:
        assert moves.put(found, found.envelope, "work")

    return Step(act, "work", keys)


def reschedule(rig: Rig, db: redis.Redis) -> Step:
    assert isinstance(rig.moves, RedisBroker)
    moves, keys = rig.moves, waits(db, 2e9)
    (found,) = moves.waiting.browse()
    return Step(lambda: check_(moves.waiting.delay(found, 3e9)), f"{OURS}waiting:work", keys[:2])


def check_(done: object) -> None:
    assert done, "it has not been done"


def due(rig: Rig, db: redis.Redis) -> Step:
    keys = waits(db, 1.0)
    waiting = ScheduledRetries(db, "", "\x06\x16")

    def act() -> None:
        for key in (f"{OURS}waiting", f"{OURS}waiting:work"):  # what is stuck is tried in a while
            with suppress(redis.ResponseError):
                members: Any = db.zrange(key, 0, -1)
                for member in members:
                    db.zadd(key, {member: 1.0})
        moved = waiting.move_due("w")
        check(redis.ResponseError(moved.why) if moved.why else None)

    return Step(act, "work", [*keys, f"{OURS}turn"])


def requeue(rig: Rig, db: redis.Redis) -> Step:
    db.hset(f"{OURS}held:dead", "t", f"work\n{MESSAGE}")
    keys = [f"{OURS}held:dead", "work", f"{OURS}takes"]
    return Step(lambda: check_(Leases(db, "").requeue("dead")), "work", keys, names=False)


STEPS = {
    "settle": settle, "hold": hold, "note": note, "release": release, "put": put,
    "reschedule": reschedule, "due": due, "requeue": requeue,
}  # fmt: skip
#: The script that each of them runs.
SCRIPT = {
    "settle": "move_unacked", "hold": "schedule_retry", "note": "record_start",
    "release": "republish", "put": "move_scheduled", "reschedule": "move_scheduled",
    "due": "release_due", "requeue": "requeue", "take": "fetch",
}  # fmt: skip


def places(db: redis.Redis) -> dict[str, int]:
    """Every key that the message lies in, and how often."""
    found = {}
    for key in db.scan_iter():
        kind = db.type(key)
        values: Any = {
            b"list": lambda key: db.lrange(key, 0, -1),
            b"hash": lambda key: db.hvals(key),
            b"zset": lambda key: db.zrange(key, 0, -1),
        }.get(kind, lambda key: [])(key)
        if number := sum(b'"the message"' in value for value in values):
            found[key.decode()] = number
    return found


def commands(script: str) -> list[str]:
    texts = lua(script) if script != "fetch" else lua(script, "celery_resilience.transport")
    found = set(re.findall(r'call\((?:call, )?"([A-Z]+)"', texts.replace("pcall(call,", "call(")))
    return sorted(found)


@contextmanager
def refused(db: redis.Redis, command: str) -> Iterator[None]:
    db.execute_command("ACL", "SETUSER", "default", f"-{command.lower()}")
    try:
        yield
    finally:
        db.execute_command("ACL", "SETUSER", "default", "+@all")


@contextmanager
def of_another_type(db: redis.Redis, key: str) -> Iterator[None]:
    there = db.exists(key)
    if there:
        db.rename(key, "aside")
    db.set(key, "somebody's")
    try:
        yield
    finally:
        db.delete(key)
        if there:
            db.rename("aside", key)


@contextmanager
def full(db: redis.Redis) -> Iterator[None]:
    db.config_set("maxmemory", 1)
    try:
        yield
    finally:
        db.config_set("maxmemory", 0)


def tries(step: Step) -> bool:
    """Three times, as it would be repeated; whether it has worked, and what it said if not."""
    for _ in range(3):
        try:
            step.act()
        except redis.ResponseError as exc:
            said = str(exc)
            named = "(" in said or "'time' command" in said or not step.names
            assert named, f"{said!r} names neither command nor key"
        except AssertionError:
            pass
        else:
            return True
    return False


@pytest.mark.parametrize("name", STEPS)
def test_right_is_missing(rig: Rig, db: redis.Redis, name: str) -> None:
    for command in commands(SCRIPT[name]):
        db.flushdb()
        step = STEPS[name](rig, db)
        with refused(db, command):
            worked = tries(step)
        assert sum(places(db).values()) == 1, f"{command}: {places(db)}"
        if not worked:
            step.act()
        assert places(db) == {step.ends_in: 1}, command


@pytest.mark.parametrize("name", STEPS)
def test_key_has_another_type(rig: Rig, db: redis.Redis, name: str) -> None:
    db.flushdb()
    for number in range(len(STEPS[name](rig, db).keys)):
        db.flushdb()
        step = STEPS[name](rig, db)
        with of_another_type(db, step.keys[number]):
            worked = tries(step)
        assert sum(places(db).values()) == 1, f"{step.keys[number]}: {places(db)}"
        if not worked:
            step.act()
        assert places(db) == {step.ends_in: 1}, step.keys[number]


@pytest.mark.parametrize("name", STEPS)
def test_memory_is_full(rig: Rig, db: redis.Redis, name: str) -> None:
    """A copy that takes the place of its original needs no room."""
    db.flushdb()
    step = STEPS[name](rig, db)
    with full(db):
        step.act()
    assert places(db) == {step.ends_in: 1}


@pytest.mark.parametrize("delay", [0, 60])
@pytest.mark.parametrize("how", ["acked", "forgotten"])
def test_answer_is_lost(rig: Rig, db: redis.Redis, how: str, delay: float) -> None:
    """What Redis does not hold is written once, though it is said again."""
    owner = LeaseOwner()
    message = delivery(rig, db, owner)
    if how == "acked":
        message = replace(message, acked_early=True)
    db.delete(owner.key, f"{OURS}takes")
    for _ in range(3):
        result = Result()
        rig.moves.schedule(message, message.envelope, delay, result)
        check(result.only)
    assert places(db) == {f"{OURS}waiting:work" if delay else "work": 1}
