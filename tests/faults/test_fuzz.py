"""Arbitrary bytes, headers and properties: nothing kills a worker, runs code or vanishes."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.policy.decision import Reason
from tests.faults.row import REDIS, Cell, Row
from tests.faults.scene import APP, Scene, Servers, alive

_SEED = int(os.environ.get("FUZZ_SEED", "20"))

#: Whatever JSON can say, and numbers that only Python's can.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
#: What a header of ours might say: its own words, with anything behind them.
_WORDS = [
    "v", "first", "count", "attempts", "losses", "starts", "lineage", "context", "succeeded",
    "letter", "id", "reason", "at", "error", "queue", "exchange", "routing_key", "kind", "rule",
    "number", "ran", "worker", "message", "delay", "result", "called", "causes", "traceback",
]  # fmt: skip
ours = st.recursive(
    anything,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=8)
    ),
    max_leaves=20,
)


def said(value: Any) -> str:
    return json.dumps(value)


@settings(max_examples=300, deadline=None)
@given(text=ours.map(said) | anything | st.text() | st.binary())
def test_header_of_any_form_is_a_history(text: Any) -> None:
    """Reading it raises nothing, what was read can be written, and that reads the same."""
    history = History.loads(text)
    attempt = Attempt(1, 0.0, 0.0, "w", "E", "m", "unknown", "r")
    again = History.loads(history.add(attempt).dumps())
    assert again.count == history.count + 1
    assert History.loads(history.dumps()) == history


@settings(max_examples=300, deadline=None)
@given(
    text=ours.map(said) | anything | st.text() | st.binary(),
    body=st.binary(max_size=100),
    headers=st.dictionaries(st.text(max_size=10), anything, max_size=4),
    content_type=st.none() | st.text(max_size=20) | st.just("application/x-celery-resilience"),
)
def test_message_of_any_form_becomes_a_letter(
    text: Any, body: bytes, headers: dict[str, Any], content_type: str | None
) -> None:
    """Whatever lies in a dead-letter queue can be read, shown, and written again."""
    letter = DeadLetter.from_envelope(
        Envelope(body, content_type, None, {**headers, HEADER: text}, {}, "dead_letter")
    )
    assert isinstance(letter.reason, Reason)
    assert isinstance(letter.task + letter.task_id + letter.arguments + letter.fingerprint, str)
    assert DeadLetter.from_envelope(letter.to_envelope()).reason is letter.reason


@settings(max_examples=300, deadline=None)
@given(
    raw=st.fixed_dictionaries(
        {},
        optional={
            "body": st.none() | st.text(max_size=40),
            "headers": anything,
            "content-type": anything,
            "content-encoding": anything,
            "properties": st.dictionaries(
                st.sampled_from(["body_encoding", "delivery_info", "priority", "correlation_id"]),
                anything | st.just("base64"),
                max_size=4,
            ),
        },
    )
)
def test_payload_of_any_form_is_an_envelope(raw: dict[str, Any]) -> None:
    """kombu hands a worker what a list of Redis holds; no more is known about it."""
    envelope = Envelope.from_wire(raw, "work")
    assert isinstance(envelope.body, bytes)
    assert envelope.to_wire("tag", "work")["properties"]["delivery_tag"] == "tag"


# The consumer of a live worker


def junk(chance: random.Random) -> Any:
    """A value that nobody has asked for, such as AMQP can carry too."""
    return chance.choice([
        lambda: None, lambda: True, lambda: chance.randrange(-(2**31), 2**31), lambda: "",
        lambda: chance.randbytes(6).hex(), lambda: [junk(chance)], lambda: {"a": junk(chance)},
        lambda: 1.5, lambda: "é\x00\u2028", lambda: "../../etc", lambda: "2001-01-01T00:00:00",
    ])()  # fmt: skip


def message(chance: random.Random, number: str) -> tuple[bytes, dict[str, Any]]:
    """A message that is nearly a task's, and a publish's options for it."""
    headers: dict[str, Any] = {
        "lang": "py", "task": f"{APP}.good", "id": number, "retries": 0, "eta": None,
        "expires": None, "timelimit": [None, None], "root_id": number, "parent_id": None,
        "group": None, "argsrepr": "()", "kwargsrepr": "{}", "origin": "x", "ignore_result": False,
        "stamps": {}, "stamped_headers": None, "shadow": None, "group_index": None,
        "replaced_task_nesting": 0, HEADER: History().dumps(),
    }  # fmt: skip
    for _ in range(chance.randrange(0, 4)):
        name = chance.choice(
            [*headers, "headers", "compression", "chord", "x-death", "redelivered"]
        )
        if chance.random() < 0.3:
            headers.pop(name, None)
        else:
            headers[name] = junk(chance)
    body: Any = [[number], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    for _ in range(chance.randrange(0, 3)):
        at = chance.randrange(0, 4)
        if at == 3:
            body[2][chance.choice(["callbacks", "errbacks", "chain", "chord"])] = junk(chance)
        else:
            body[at] = junk(chance)
        if not isinstance(body[2], dict):
            break
    raw = json.dumps(body).encode()
    if chance.random() < 0.2:
        raw = chance.choice(
            [chance.randbytes(50), raw[:-3], b"", json.dumps(junk(chance)).encode()]
        )
    content_type = chance.choice(["application/json"] * 6 + ["application/x-python-serialize", "x"])
    return raw, {
        "headers": headers,
        "content_type": content_type,
        "content_encoding": chance.choice(["utf-8", "utf-8", "binary", "no-such"]),
        "correlation_id": number,
        "priority": chance.choice([None, 0, 3, 9]),
    }


@pytest.mark.parametrize(
    ("broker", "pool"), [("redis", "prefork"), ("redis", "solo"), ("rabbitmq-classic", "threads")]
)
def test_messages_of_any_form_kill_no_worker_and_stay(
    broker: str, pool: str, servers: Servers, tmp_path: Path
) -> None:
    """Each is a letter, or ran, or was dropped for its own ``expires``; the next one runs."""
    _live(broker, pool, servers, tmp_path, _SEED, 250, message)


#: A value of each type that JSON has; not what a name would have by rights.
_ODD = [5, "x", [1], {"a": 1}, True, 1.5, None]
_PROPERTIES = [
    "delivery_info", "delivery_mode", "priority", "body_encoding", "correlation_id", "reply_to",
]  # fmt: skip
_PLACES = [
    *[("properties", name) for name in _PROPERTIES],
    ("properties", "delivery_info", "exchange"),
    ("properties", "delivery_info", "routing_key"),
    ("properties", "delivery_info", "redelivered"),
    ("content-type",),
    ("content-encoding",),
    ("body",),
]


def odd(place: tuple[str, ...], value: Any, number: str) -> bytes:
    """A task's message as Redis holds it, with *value* where it has no business."""
    body = base64.b64encode(json.dumps([[number], {}, {}]).encode()).decode()
    payload: Any = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": f"{APP}.good", "id": number},
        "properties": {
            "delivery_tag": number, "correlation_id": number, "body_encoding": "base64",
            "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "work"},
        },
    }  # fmt: skip
    inner = payload
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return json.dumps(payload).encode()


@pytest.mark.parametrize("broker", REDIS)
def test_properties_of_any_type_end_no_worker(
    broker: str, servers: Servers, tmp_path: Path
) -> None:
    """It runs or is a letter, and the worker goes on."""
    row = Row("0", "odd", lambda scene: None)
    with Scene(Cell(row, broker, "threads"), servers, tmp_path) as scene:
        worker, db = scene.worker(), scene.redis()
        pid = worker.pid
        for place, value in product(_PLACES, _ODD):
            number = scene.number("odd", ends="result letter")
            db.lpush("work", odd(place, value, number))
        last = scene.send("good")
        scene.wait(lambda: scene.places.states().get(last) == "SUCCESS", 40)
        assert worker.pid == pid
        assert alive(pid)
        assert "Connection to broker lost" not in worker.log()
        scene.wait(lambda: not db.exists("work", *db.keys("celery_resilience:held:*")))
        ran = {words[0] for words in scene.lines("end") if words}
        letters = scene.places.letters()
        there = ran | {*letters} | {number for number in scene.tasks if number == last}
        missing = len({*scene.tasks} - there)
        assert missing <= len(scene.places.strangers), {*scene.tasks} - there


def _live(
    broker: str, pool: str, servers: Servers, directory: Path, seed: int, count: int,
    make: Callable[[random.Random, str], tuple[bytes, dict[str, Any]]],
) -> None:  # fmt: skip
    chance = random.Random(seed)
    row = Row("0", "fuzz", lambda scene: None)
    with Scene(Cell(row, broker, pool), servers, directory) as scene:
        worker = scene.worker()
        pid = worker.pid
        numbers = []
        for _ in range(count):
            number = scene.number("fuzz", ends="result letter dropped waiting")
            numbers.append(number)
            body, options = make(chance, number)
            scene.client.put("work", body, **options)
        last = scene.send("good")
        scene.wait(lambda: scene.started(last) and scene.places.states().get(last) == "SUCCESS", 60)
        scene.wait(lambda: scene.client.count("work") == 0, 30, message="the work queue is empty")
        assert worker.pid == pid
        assert alive(pid)
        scene._end(worker)
        assert "Unrecoverable" not in worker.log(), f"seed {seed}"
        ran = {words[0] for words in scene.lines("end") if words}
        letters = scene.places.letters()
        dropped, lying = worker.log(), scene.places.lying()
        lost = [
            number for number in numbers
            if number not in ran and number not in letters and number not in lying
            and f"[{number}]" not in "".join(
                line for line in dropped.splitlines() if "Discarding revoked" in line)
        ]  # fmt: skip
        strangers = len(scene.places.strangers)
        assert len(lost) <= strangers + _ran_as_others(scene, numbers), f"seed {seed}: lost {lost}"


def _ran_as_others(scene: Scene, numbers: list[str]) -> int:
    """How many bodies ran with another argument than their number."""
    return sum(words[:1] != [] and words[0] not in numbers for words in scene.lines("start"))
