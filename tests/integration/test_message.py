"""The message of a retry is the message received."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import chain, chord, group
from kombu.compression import decompress

from celery_resilience.brokers.connect import open_broker
from celery_resilience.brokers.rabbitmq.pyamqp import UNREADABLE
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.policy.decision import Reason
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

PARKS = "tests.apps.shop.parks"
#: What a retry changes, and nothing else.
CHANGED = {"retries", "eta", HEADER}


def send_all(client: Client) -> int:
    """One message of every kind; how many."""
    app = client.app
    names = iter(f"m{n}" for n in range(100))

    def parks(**options: Any) -> Any:
        return app.signature(PARKS, args=(next(names),), app=app, **options)

    later = datetime.now(timezone.utc) + timedelta(hours=1)
    for serializer in ("json", "pickle", "msgpack", "yaml"):
        for compression in (None, "zlib"):
            parks().apply_async(serializer=serializer, compression=compression)
    parks().apply_async(priority=6)
    parks().apply_async(queue="other")
    parks().apply_async(expires=later, time_limit=50, soft_time_limit=40)
    parks().apply_async(headers={"tenant": "acme", "n": 7})
    parks().apply_async(argsrepr="(<a card number>,)", kwargsrepr="{'cvc': '***'}")
    parks().apply_async(shadow="shop.renamed", ignore_result=True, reply_to="somewhere")
    parks().apply_async(link=parks(), link_error=parks())
    stamped = parks()
    stamped.stamp(stamped_headers=["monitoring_id"], monitoring_id="abc")
    stamped.apply_async()
    chain(parks(), parks(), parks()).apply_async()
    group([parks(), parks()]).apply_async()
    chord([parks(), parks()], parks()).apply_async()
    first = type(app)("client1", broker=app.conf.broker_url)
    first.conf.update(
        {k: app.conf[k] for k in ("task_default_queue", "task_queues", "task_default_queue_type")},
        task_protocol=1,
    )
    for compression in (None, "zlib"):
        for serializer in ("json", "pickle"):
            first.send_task(
                PARKS, (next(names),), compression=compression, serializer=serializer, priority=3,
                expires=later, headers={"tenant": "acme"},
            )  # fmt: skip
    return 8 + 8 + 1 + 2 + 2 + 4


def lying(client: Client) -> dict[str, Envelope]:
    """What lies in the queues, by the task's id."""
    found = {}
    with client.app.connection_for_read() as connection:
        broker = open_broker(connection)
        for queue in ("shop", "other"):
            for each in broker.browse(queue):
                found[each.envelope.fields()["id"]] = each.envelope
        broker.close()
    return found


def opened(envelope: Envelope) -> Any:
    """The body, decompressed: AMQP's are compressed anew, with the same result to a reader."""
    compression = envelope.headers.get("compression")
    return decompress(envelope.body, compression) if compression else envelope.body


def test_retry_is_the_message_received(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Body, type, headers, properties, queue are the same; only the retry's fields differ."""
    sent = send_all(client)
    before = lying(client)
    assert len(before) == sent
    worker = start_worker(
        "tests.apps.shop", broker, pool="threads", concurrency=4, queues="shop,other",
        env=client.env, arguments=["--prefetch-multiplier", "20", "--hold-retries", "worker"],
    )  # fmt: skip
    eventually(lambda: sum(client.executions().values()) == sent, timeout=40)
    worker.terminate()
    eventually(lambda: len(lying(client)) == sent, message="every retry is back in its queue")
    after = lying(client)

    assert after.keys() == before.keys()
    for id_, envelope in before.items():
        copy = after[id_]
        if envelope.protocol == 2:
            assert opened(copy) == opened(envelope)
            if "redis" in broker.name:
                assert copy.body == envelope.body, "byte for byte, compressed ones too"
        else:
            fields, original = copy.fields(), envelope.fields()
            assert without(fields, CHANGED) == without(original, CHANGED)
            assert fields["retries"] == 1
        assert (copy.content_type, copy.content_encoding, copy.queue) == (
            envelope.content_type,
            envelope.content_encoding,
            envelope.queue,
        )
        assert without(copy.headers, CHANGED) == without(envelope.headers, CHANGED)
        assert copy.properties == envelope.properties
        fields = copy.fields()
        assert fields["retries"] == 1
        due = datetime.fromisoformat(fields["eta"])
        assert timedelta(minutes=9) < due - datetime.now(timezone.utc) <= timedelta(minutes=10)
        history = History.loads(copy.headers[HEADER])
        assert (history.count, history.attempts[0].delay) == (1, 600.0)


def without(fields: Any, names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def test_canvas_goes_on_after_a_retry(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Chain, group, chord and callback get what they wait for when a retry succeeds."""
    start_worker("tests.apps.shop", broker, env=client.env)
    app = client.app

    def add(*args: int) -> Any:
        return app.signature("tests.apps.shop.add", args=args, app=app)

    total = app.signature("tests.apps.shop.total", app=app)
    chained = chain(add(1, 2), add(10)).apply_async()
    grouped = group([add(1, 1), add(2, 2)]).apply_async()
    chorded = chord([add(3, 3), add(4, 4), add(5, 5)], total).apply_async()
    assert client.value(chained) == 13
    assert client.value(grouped) == [2, 4]
    assert client.value(chorded) == 24
    assert client.executions()["total"] == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_retry_that_would_be_due_after_it_expires_is_a_letter_at_once(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """The last word is not a silent REVOKED in ten minutes."""
    start_worker("tests.apps.shop", broker, env=client.env)
    client.send("parks", "short-lived", expires=60)
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert letter.reason == "expired"


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
@pytest.mark.parametrize(
    ("task", "large", "reason"),
    [
        ("broken", "x" * 130_000, Reason.INVALID),
        # In JSON they weigh half of what RabbitMQ takes them for.
        ("refused", [0.5] * 14_400, Reason.PERMANENT),
    ],
)
def test_headers_that_leave_no_room_for_ours_are_a_letter(
    broker: Broker, client: Client, start_worker: Callable[..., Worker],
    task: str, large: Any, reason: Reason,
) -> None:  # fmt: skip
    """RabbitMQ takes 128 KB, and closes the connection if they are more."""
    worker = start_worker("tests.apps.shop", broker, env=client.env)
    client.send(task, "b", headers={"large": large})
    (letter,) = eventually(client.letters)
    assert (letter.reason, letter.envelope.headers["large"]) == (reason, large)
    assert "settlement failed" not in worker.log()


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_properties_that_cannot_be_read_are_a_letter(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """py-amqp raises that into the worker's loop: such a message ended one worker after another."""
    start_worker("tests.apps.shop", broker, env=client.env)
    sent = [
        b"\x04\x00\x02\xff\xfe",  # a correlation_id that is no UTF-8
        b"\x80\x00\x02\xff\xfe",  # a content type
        b"\x20\x00\x00\x00\x00\x0b\x01tT" + b"\xff" * 8,  # a time after the last one
    ]
    with client.app.connection_for_write() as connection:
        channel = connection.channel()
        for properties in sent:
            message = channel.prepare_message(b"[[], {}, {}]")
            message._serialize_properties = lambda properties=properties: properties
            channel.basic_publish(message, exchange="", routing_key="shop")
    letters = eventually(lambda: len(client.letters()) == len(sent) and client.letters())
    assert {letter.reason for letter in letters} == {Reason.UNDECODABLE}
    kept = [base64.b64decode(letter.envelope.headers[UNREADABLE]) for letter in letters]
    assert sorted(kept) == sorted(sent)
    assert {letter.envelope.body for letter in letters} == {b"[[], {}, {}]"}
    assert client.value(client.send("flaky", "good", 0)) == "good done"
