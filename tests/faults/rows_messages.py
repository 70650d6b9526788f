"""Row 1: messages that no worker can make a task of."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

from tests.faults.row import EVERYWHERE, OURS, RABBITS, row
from tests.faults.scene import APP, Scene, alive

_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}
_GOOD = b'[["x"], {}, {}]'


def malformed(number: str) -> list[tuple[str, bytes, dict[str, Any]]]:
    """(the letter's reasons, body, options of the publish) of every kind that we know."""

    def headers(**changed: Any) -> dict[str, Any]:
        told = {"lang": "py", "task": f"{APP}.good", "id": number, "retries": 0}
        return {"headers": {**told, **changed}, **_JSON}

    def without(name: str) -> dict[str, Any]:
        told = headers()
        del told["headers"][name]
        return told

    def protocol_1(**changed: Any) -> bytes:
        told = {"task": f"{APP}.good", "id": number, "args": ["x"], "kwargs": {}, "retries": 0}
        return json.dumps({**told, **changed}).encode()

    return [
        ("unregistered", _GOOD, headers(task="nobody.knows.it")),
        ("unregistered", protocol_1(task="nobody.knows.it"), {"headers": {}, **_JSON}),
        ("invalid", _GOOD, without("task")),
        ("invalid", _GOOD, without("id")),
        ("invalid", _GOOD, {"headers": {}, **_JSON}),
        ("invalid", b'{"not": "a task"}', {"headers": {"from": "elsewhere"}, **_JSON}),
        ("invalid", b"[1]", headers()),
        ("invalid", b"7", headers()),
        ("invalid", b'"text"', headers()),
        ("invalid", b"null", headers()),
        ("invalid", b"[[], {}, {}, {}, {}]", headers()),
        ("invalid permanent", b"[7, {}, {}]", headers()),
        ("invalid permanent", b'[["x"], 7, {}]', headers()),
        ("invalid permanent", protocol_1(args=7), {"headers": {}, **_JSON}),
        ("invalid", protocol_1(kwargs=[1, 2]), {"headers": {}, **_JSON}),
        ("invalid", _GOOD, headers(eta="yesterday-ish")),
        ("invalid", _GOOD, headers(eta={"a": 1})),
        ("invalid", _GOOD, headers(expires="never-ever")),
        ("invalid", _GOOD, headers(expires=[1])),
        ("invalid", _GOOD, headers(timelimit=[1])),
        ("invalid", _GOOD, headers(timelimit="soon")),
        ("unregistered", _GOOD, headers(task="nobody.knows.it", large="x" * 125_000)),
        ("invalid", _GOOD, headers(stamped_headers=True)),
        ("invalid", _GOOD, headers(stamped_headers=[["x"]])),
        ("invalid", _GOOD, headers(stamped_headers=["x"], stamps="x")),
        ("invalid", b'[["x"], {}, "embedded"]', headers()),
        ("undecodable invalid", b"", headers()),
        ("undecodable", b'{"half', headers()),
        ("undecodable", b"\xff\xfe", headers()),
        ("undecodable", b"[" * 100_000, headers()),
        ("undecodable", _GOOD, headers(compression="application/x-gzip")),
        ("undecodable", _GOOD, headers(compression="nobody-knows-it")),
        ("undecodable", b"<task/>", {**headers(), "content_type": "text/xml"}),
        (
            "undecodable",
            pickle.dumps(((), {}, {})),
            {**headers(), "content_type": "application/x-python-serialize",
             "content_encoding": "binary"},
        ),
    ]  # fmt: skip


@row(
    "1",
    "messages that are no tasks, among good ones",
    pools=EVERYWHERE,
    ci=(
        "redis/prefork",
        "redis/solo",
        "rabbitmq-quorum/gevent",
    ),
)
def messages(scene: Scene) -> None:
    worker = scene.worker()
    pid, sent = worker.pid, {}
    for at in range(len(malformed(""))):
        number = scene.number("malformed", ends="letter", starts=0)
        reason, body, options = malformed(number)[at]
        scene.tasks[number].reasons = tuple(reason.split())
        sent[number] = body
        scene.client.put("work", body, correlation_id=number, **options)
        if at % 5 == 0:
            scene.send("good")
    # A body that can be read, whose arguments do not fit: the task's own failure.
    scene.send("good", 1, 2, 3, ends="letter", starts=0, reasons="permanent invalid")
    last = scene.send("flaky", starts=2)
    scene.wait(lambda: scene.places.are_final(), scene.patience)
    scene.expect(scene.started(last) == 2, "the last task did not run")
    scene.expect(alive(pid) and worker.pid == pid, "the worker has died")
    scene.expect("Unrecoverable" not in worker.log(), "the worker had an unrecoverable error")
    for number, letters in scene.places.letters().items():
        if number in sent:
            scene.expect(
                letters[0].envelope.body == sent[number], f"{number} is not as it was received"
            )


@row(
    "1-list",
    "bytes in the Redis list that are no message at all",
    # kombu's own transport loses them, and the worker dies.
    brokers=OURS,
    ci=("redis/prefork",),
)
def garbage_in_the_list(scene: Scene) -> None:
    worker = scene.worker()
    pid, client = worker.pid, scene.redis()
    for payload in (b"\xff\x00 garbage", b"{}", b'{"body": "x"}', b"7", b"[" * 100_000):
        client.lpush("work", payload)
    body = base64.b64encode(_GOOD).decode()
    client.lpush("work", json.dumps({"body": body, "headers": {}, "properties": {}}))
    for _ in range(3):
        scene.send("good")
    scene.wait(lambda: scene.places.are_final(), scene.patience)
    scene.wait(lambda: scene.client.count("dead_letter") == 6, message="6 letters")
    scene.places.nameless = 6
    scene.expect(alive(pid) and worker.pid == pid, "the worker has died")


@row(
    "1-headers",
    "headers that leave no room for ours, properties that no client can read",
    brokers=RABBITS,
    pools=EVERYWHERE,
)
def headers(scene: Scene) -> None:
    worker = scene.worker()
    pid = worker.pid
    unreadable = [
        b"\x04\x00\x02\xff\xfe",  # a correlation_id that is no UTF-8
        b"\x80\x00\x02\xff\xfe",  # a content type
        b"\x20\x00\x00\x00\x00\x0b\x01tT" + b"\xff" * 8,  # a time after the last one
    ]
    with scene.client.app.connection_for_write() as connection:
        channel = connection.channel()
        for properties in unreadable:
            message = channel.prepare_message(_GOOD)
            message._serialize_properties = lambda properties=properties: properties
            channel.basic_publish(message, exchange="", routing_key="work")
    large = {"large": "x" * 130_000}
    for _ in range(3):
        scene.send("refuses", ends="letter", reasons="permanent", headers=large)
        scene.send("flaky", starts=2)
    scene.wait(lambda: scene.places.are_final(), scene.patience)
    scene.wait(lambda: scene.client.count("dead_letter") == 6, message="6 letters")
    scene.places.nameless = len(unreadable)
    scene.expect(alive(pid) and worker.pid == pid, "the worker has died")
