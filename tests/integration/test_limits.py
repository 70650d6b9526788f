"""What never becomes a task, and what takes its process with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
FLAKY = f"{SHOP}.flaky"
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}

StartWorker = Callable[..., Worker]


def headers(**changed: Any) -> dict[str, Any]:
    return {"lang": "py", "task": FLAKY, "id": os.urandom(8).hex(), "retries": 0, **changed}


GOOD = b'[["x", 0], {}, {}]'
#: (body, options, the letter's reason)
UNREADABLE: list[tuple[bytes, dict[str, Any], str]] = [
    (b"[1]", {"headers": headers(), **JSON}, "invalid"),
    (b"7", {"headers": headers(), **JSON}, "invalid"),
    (GOOD, {"headers": {"task": FLAKY}, **JSON}, "invalid"),
    (GOOD, {"headers": {}, **JSON}, "invalid"),
    (b'{"unknown": "words"}', {"headers": {"no": "task"}, **JSON}, "invalid"),
    (GOOD, {"headers": headers(eta="yesterday-ish"), **JSON}, "invalid"),
    (GOOD, {"headers": headers(expires="never-ever"), **JSON}, "invalid"),
    (GOOD, {"headers": headers(timelimit=[1]), **JSON}, "invalid"),
    (GOOD, {"headers": headers(timelimit="soon"), **JSON}, "invalid"),
    (b'{"half', {"headers": headers(), **JSON}, "undecodable"),
    (b"\xff\xfe", {"headers": headers(), **JSON}, "undecodable"),
    (b"<task/>", {"headers": headers(), "content_type": "text/xml"}, "undecodable"),
    (GOOD, {"headers": headers(compression="application/x-gzip"), **JSON}, "undecodable"),
    (GOOD, {"headers": headers(task="nobody.knows.it"), **JSON}, "unregistered"),
]


@pytest.mark.parametrize(
    ("broker", "pool"),
    [("redis", "prefork"), ("redis", "gevent"), ("rabbitmq-classic", "prefork"),
     ("rabbitmq-quorum", "threads")],
    indirect=["broker"],
)  # fmt: skip
def test_unreadable_message_is_a_letter_as_it_was_received(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """Every malformed message is kept, byte for byte; the worker goes on with the good ones."""
    worker = start_worker(SHOP, broker, pool=pool, env=client.env)
    for body, options, _ in UNREADABLE:
        client.put("shop", body, **options)
    good = client.send("flaky", "good", 1)
    assert client.value(good, timeout=15) == "good done"
    eventually(
        lambda: client.count("dead_letter") == len(UNREADABLE),
        message=f"{len(UNREADABLE)} letters",
    )
    letters = client.letters()
    assert Counter(letter.reason.value for letter in letters) == Counter(
        reason for _, _, reason in UNREADABLE
    )
    assert Counter(letter.envelope.body for letter in letters) == Counter(
        body for body, _, _ in UNREADABLE
    )
    assert worker.terminate() == 0
    assert client.count("shop") == 0
    assert "Unrecoverable" not in worker.log()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_task_that_kills_its_process_is_a_letter_and_the_others_finish(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Three starts at most; its neighbours are not buried with it."""
    start_worker(SHOP, broker, env=client.env)
    client.send("murdered", "poison")
    good = [client.send("flaky", f"good-{n}", 0) for n in range(20)]
    for result in good:
        client.value(result)
    eventually(lambda: client.count("dead_letter") == 1, timeout=40)
    (letter,) = client.letters()
    assert (letter.reason, letter.task) == ("worker_lost", f"{SHOP}.murdered")
    assert client.executions()["poison"] == 3
    assert letter.history.losses == letter.history.count == 3


@pytest.mark.parametrize(
    ("broker", "pool"),
    [("redis", "prefork"), ("redis", "gevent"), ("rabbitmq-classic", "prefork"),
     ("rabbitmq-quorum", "prefork")],
    indirect=["broker"],
)  # fmt: skip
def test_hard_time_limit_is_a_letter_with_its_own_reason(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """One letter, one failure: Celery's second call for the same limit changes nothing."""
    start_worker(SHOP, broker, pool=pool, env=client.env)
    result = client.send("slow", "slow", time_limit=1)
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert letter.reason == "time_limit"
    assert "TimeLimitExceeded" in letter.error.error
    eventually(lambda: client.state(result) == "FAILURE")
    assert client.executions()["slow"] == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_soft_time_limit_is_a_letter_with_its_own_reason(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    start_worker(SHOP, broker, env=client.env)
    client.send("slow", "slow", soft_time_limit=1)
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert (letter.reason, "SoftTimeLimitExceeded" in letter.error.error) == ("time_limit", True)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_worker_refuses_to_execute_letters(broker: Broker, client: Client) -> None:
    """Told to consume the dead-letter queue it does not start, and says why."""
    worker = Worker(SHOP, broker, queues="shop,dead_letter", env=client.env)
    with pytest.raises(AssertionError, match="the worker ended"):
        worker.__enter__()
    assert "dead_letter, where dead letters are kept" in worker.log()
    assert "celery dlq replay" in worker.log()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_flags_override_settings(broker: Broker, client: Client, start_worker: StartWorker) -> None:
    """--dead-letter-queue and --max-worker-losses hold; {queue} is filled in."""
    start_worker(
        SHOP, broker, env=client.env,
        arguments=["--dead-letter-queue", "failed.{queue}", "--max-worker-losses", "1"],
    )  # fmt: skip
    client.send("murdered", "poison")
    eventually(lambda: client.count("failed.shop") == 1)
    assert client.executions()["poison"] == 1
    assert client.count("dead_letter") == 0


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_task_id_that_has_succeeded_before_does_not_hide_a_lost_worker(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """An older success under the same id is another run's."""
    start_worker(SHOP, broker, env=client.env, arguments=["--max-worker-losses", "1"])
    client.value(client.send("flaky", "first", 0, task_id="nightly"))
    client.send("murdered", "second", task_id="nightly")
    eventually(lambda: client.count("dead_letter") == 1)
    assert client.letters()[0].reason == "worker_lost"
