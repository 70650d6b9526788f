"""Policies by name, by pattern and from the operator's file; fallbacks; the worker's switches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain

from celery_resilience.brokers.connect import open_broker
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.operate.replay import Replay, ReplayResult
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

APP = "tests.apps.policies"
FILE = f"""\
[policies.ops]
max_retries = 1
backoff = 0.05

[tasks]
"{APP}.overruled" = "ops"
"""

StartWorker = Callable[..., Worker]


def send(client: Client, task: str, *args: Any, **options: Any) -> Any:
    return client.app.send_task(f"{APP}.{task}", args, **options)


def order(client: Client, order: str, fails: bool) -> Any:
    return client.app.send_task(f"{APP}.keyed", (order,), {"fails": fails})


def letters(client: Client) -> dict[str, str]:
    return {letter.task.rpartition(".")[2]: letter.reason.value for letter in client.letters()}


def replay(client: Client, task: str) -> None:
    """Replay the one letter of *task*."""
    with client.app.connection_for_write() as connection:
        broker = open_broker(connection)
        for found in broker.browse("dead_letter"):
            letter = DeadLetter.from_envelope(found.envelope)
            if letter.task == f"{APP}.{task}":
                plan = Replay.of(client.app, broker, ["dead_letter"], None, letter.at)
                assert plan.one(found, letter, "dead_letter").result is ReplayResult.PUBLISHED
        broker.close()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True)
def test_each_task_ends_as_its_policy_says(
    broker: Broker, client: Client, start_worker: StartWorker, tmp_path: Path
) -> None:
    """One worker, every way in which a policy or a fallback can decide."""
    (tmp_path / "ops.toml").write_text(FILE)
    start_worker(
        APP, broker, env={**client.env, "CELERY_WORKER_DEAD_LETTER_QUEUE": "from_environment"},
        arguments=["--failure-policies", str(tmp_path / "ops.toml"),
                   "--dead-letter-queue", "dead_letter"],
    )  # fmt: skip
    for name in ("by_pattern", "by_reference", "overruled", "discards", "hurries"):
        send(client, name, name)
    polled = send(client, "polls", "polled", 2)
    send(client, "polls", "never", 9)
    cached = send(client, "cached", "cached")
    uncached = send(client, "cached", "nothing cached")
    asked = send(client, "asks_cached", "asked")
    snoozed = send(client, "snoozes", "snoozed")
    paged = send(client, "pages", "paged", 4)
    buried = send(client, "pages", "buried", 6)
    anew = send(client, "asks_anew", "a")
    shouted = chain(
        client.app.signature(f"{APP}.cached", ("chained",)),
        client.app.signature(f"{APP}.shout"),
    ).apply_async()

    assert client.value(polled) == "ready"
    assert client.value(cached) == "cached after 4"
    assert client.value(asked) == "asked after 2"
    assert client.value(snoozed) == 1
    assert client.value(shouted) == "CHAINED AFTER 4"
    assert client.value(paged) == {"page": 4}
    assert client.value(anew) == "a a+ a++"
    wanted = {
        "pages": "exhausted",
        "by_pattern": "exhausted",
        "by_reference": "exhausted",
        "overruled": "exhausted",
        "hurries": "deadline",
        "polls": "exhausted",
        "cached": "exhausted",
    }
    eventually(lambda: client.count("dead_letter") == len(wanted), message="all is decided")
    assert letters(client) == wanted
    ran = client.executions()
    assert (ran["by_pattern"], ran["by_reference"]) == (3, 3)
    assert (ran["overruled"], ran["discards"]) == (2, 1)
    assert (ran["polled"], ran["never"], ran["cached"], ran["snoozed"]) == (3, 4, 4, 4)
    assert ran["hurries"] == 2, "again after 0.05 s, but not after 500 s: a minute is all there is"
    assert client.state(uncached) == "FAILURE"
    (unready,) = [found for found in client.letters() if found.task.endswith("polls")]
    assert unready.error.error.endswith("UnacceptableResult")
    assert unready.error.message == "not good enough: 'pending'"

    assert "below 0 4" in client.lines(), "a task that a body sends reads its parent's context"
    replay(client, "pages")
    assert client.value(buried) == {"page": 6}, "a replay goes on where the letter ended"
    assert client.executions()["buried"] == 6


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_task_that_is_sent_anew_finds_the_context_of_its_key(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Until one succeeds: then the work that the key stands for is done."""
    start_worker(APP, broker, env=client.env)
    order(client, "A", fails=True)
    eventually(lambda: client.count("dead_letter") == 1)
    order(client, "A", fails=True)
    eventually(lambda: client.count("dead_letter") == 2)
    assert client.value(order(client, "B", fails=False)) == 1
    assert client.value(order(client, "A", fails=False)) == 3
    assert client.value(order(client, "A", fails=False)) == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_switched_off_stock_celery_decides(
    broker: Broker, client: Client, start_worker: StartWorker, tmp_path: Path
) -> None:
    """No classification, no policy, no letter; autoretry and self.retry as Celery does them.

    A file of policies that is wrong is not in the way.
    """
    (tmp_path / "ops.toml").write_text("[oops")
    # One process: in two, stock Celery's RETRY may overwrite the FAILURE of the attempt after it.
    worker = start_worker(
        APP, broker, env=client.env, concurrency=1,
        arguments=["--no-resilience", "--failure-policies", str(tmp_path / "ops.toml")],
    )  # fmt: skip
    failed = [
        send(client, name, name)
        for name in ("by_pattern", "cached", "overruled", "autoretried", "asks_stock")
    ]
    send(client, "nobody_knows", "x")
    pending = send(client, "polls", "polled", 2)
    for result in failed:
        eventually(lambda result=result: client.state(result) == "FAILURE")
    assert client.value(pending) == "pending"
    assert worker.terminate() == 0
    assert client.count("dead_letter") == client.count("shop") == 0
    ran = client.executions()
    assert (ran["by_pattern"], ran["cached"], ran["overruled"]) == (1, 1, 1)
    assert (ran["autoretried"], ran["asks_stock"]) == (3, 2)
    assert "celery_resilience is switched off: stock Celery decides" in worker.log()


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True)
def test_expired_task_is_a_letter_that_can_be_replayed(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """By default it is dropped; with --dead-letter-expired it is kept. A revoked one is dropped."""
    options: dict[str, Any] = {"expires": "2020-01-01T00:00:00+00:00"}
    if "redis" not in broker.name:  # the broker itself drops what expires in its queue
        options = {"headers": {"expires": "2020-01-01T00:00:00+00:00"}}
    expired = send(client, "shout", "late", **options)
    worker = start_worker(APP, broker, env=client.env, arguments=["--dead-letter-expired"])
    assert client.app.control.revoke("unwanted", reply=True, timeout=5, limit=1)
    revoked = send(client, "shout", "unwanted", task_id="unwanted", **options)
    eventually(lambda: client.state(revoked) == "REVOKED")
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert letter.task_id == expired.id
    assert letter.reason == "expired"
    assert "it expired at 2020-01-01" in letter.rule
    eventually(lambda: client.state(expired) == "REVOKED")
    assert client.executions()["shout"] == 0

    replay(client, "shout")
    assert client.value(expired) == "LATE"
    assert worker.terminate() == 0


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_bad_file_stops_the_worker_and_names_the_line(
    broker: Broker, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "ops.toml").write_text(FILE.replace("max_retries", "max_retry"))
    worker = Worker(
        APP, broker, env={**client.env, "CELERY_WORKER_FAILURE_POLICIES": f"{tmp_path}/ops.toml"}
    )
    with pytest.raises(AssertionError, match="the worker ended"):
        worker.__enter__()
    assert (
        "ops.toml, line 2: policies.ops: there is no key 'max_retry'; did you mean 'max_retries'?"
        in worker.log()
    )
