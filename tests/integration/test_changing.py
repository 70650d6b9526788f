"""What a body has changed of its own message goes along with a retry, as on stock Celery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker


@pytest.mark.parametrize(
    ("broker", "pool", "serializer", "protocol"),
    [
        ("redis", "prefork", "json", 2),
        ("redis", "prefork", "json", 1),
        ("rabbitmq-quorum", "threads", "pickle", 2),
        ("rabbitmq-quorum", "threads", "pickle", 1),
    ],
    indirect=["broker"],
)
def test_next_attempt_finds_what_the_last_one_has_changed(
    broker: Broker, pool: str, serializer: str, protocol: int, client: Client,
    start_worker: Callable[..., Worker],
) -> None:  # fmt: skip
    client.app.conf.task_protocol = protocol
    worker = start_worker("tests.apps.changing", broker, pool=pool, env=client.env)
    options = {"serializer": serializer, "compression": "gzip"}

    def send(task: str, *args: Any) -> Any:
        return client.app.send_task(f"changing.{task}", args, **options)

    results = [
        send("list", "list", ["a", "b", "c"]),
        send("keywords", "page"),
        send("retries", "retries", [1, 1, 1, 1]),
        chain(
            client.app.signature("changing.chain", ("chain",), app=client.app),
            client.app.signature("changing.follows", ("follows",), app=client.app),
        ).apply_async(),
        send("unsendable", "unsendable", []),
    ]
    for result in [*results[:3], results[3].parent, results[4]]:
        client.value(result)
    assert worker.terminate() == 0
    runs = [
        *("list:a", "list:b", "list:c"),
        *("page:0", "page:1", "page:2", "page:3"),
        *["retries"] * 5,
        *["chain"] * 2,
    ]
    unsendable = [f"unsendable:{n}" for n in ((0, 0) if serializer == "json" else (0, 1))]
    assert sorted(client.lines()) == sorted([*runs, *unsendable])
    said = "its body has changed its arguments, but that can't be sent"
    assert (said in worker.log()) == (serializer == "json")
    assert client.count("dead_letter") == 0


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_new_message_of_the_same_task_knows_of_the_attempts_before_it(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    start_worker("tests.apps.changing", broker, env=client.env)
    client.app.send_task("changing.asks", ("asks", 0))
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert len(client.lines()) == letter.history.count == 4
    assert [attempt.number for attempt in letter.history.attempts] == [1, 2, 3, 4]
    assert [attempt.message for attempt in letter.history.attempts] == ["0", "1", "2", "3"]
    assert letter.history.first == letter.history.attempts[0].at
