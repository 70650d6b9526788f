"""The way of a failing task, end to end: real workers, real brokers, every pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from celery_resilience.policy.decision import Reason
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"

StartWorker = Callable[..., Worker]

MATRIX = [
    ("redis", "prefork"),
    ("redis", "threads"),
    ("redis", "solo"),
    ("redis", "gevent"),
    ("resilient-redis", "prefork"),
    ("resilient-redis", "gevent"),
    ("rabbitmq-classic", "prefork"),
    ("rabbitmq-classic", "threads"),
    ("rabbitmq-classic", "solo"),
    ("rabbitmq-classic", "gevent"),
    ("rabbitmq-quorum", "prefork"),
    ("rabbitmq-quorum", "gevent"),
]


@pytest.mark.parametrize(("broker", "pool"), MATRIX, indirect=["broker"])
def test_every_task_ends_where_its_owner_can_see_it(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """Each kind of failure ends as its result or as a letter with the right reason."""
    worker = start_worker(SHOP, broker, pool=pool, concurrency=2, env=client.env)
    results = {
        "flaky": [client.send("flaky", f"flaky-{n}", 2) for n in range(5)],
        "limited": [client.send("limited", "limited")],
    }
    letters = {
        "refused": Reason.PERMANENT,
        "broken": Reason.EXHAUSTED,
        "bug": Reason.PERMANENT,
        "exits": Reason.PERMANENT,
        "out_of_memory": Reason.EXHAUSTED,
        "unpicklable": Reason.EXHAUSTED,
        "asks": Reason.EXHAUSTED,
        "stated": Reason.EXHAUSTED,
    }
    failed = {name: client.send(name, name) for name in letters}
    client.send("nobody_knows", "x")
    client.send("discarded", "discarded")
    client.send("expected", "expected")
    client.send("own_letters", "own")
    client.send("rule_letters", "rule")

    for result in [*results["flaky"], *results["limited"]]:
        assert client.value(result)
    wanted = {f"{SHOP}.{name}": reason for name, reason in letters.items()}
    wanted[f"{SHOP}.nobody_knows"] = Reason.UNREGISTERED
    eventually(
        lambda: (
            client.count("dead_letter") == len(wanted)
            and client.count("dead.shop") == 1
            and client.count("dead_values") == 1
        ),
        timeout=40,
        message="every failure is a letter",
    )
    eventually(lambda: client.executions()["discarded"] == 1 and client.executions()["expected"])
    found = {letter.task: letter.reason for letter in client.letters()}
    assert found == wanted

    ran = client.executions()
    assert [ran[f"flaky-{n}"] for n in range(5)] == [3] * 5
    assert (ran["refused"], ran["broken"], ran["bug"], ran["exits"]) == (1, 4, 1, 1)
    assert (ran["asks"], ran["stated"], ran["limited"]) == (3, 3, 3)
    for name, result in failed.items():
        eventually(partial(is_failed, client, result), message=f"{name} is stored as failed")

    assert worker.terminate() == 0
    assert client.count("shop") == 0, "nothing is left in the queue"
    assert len(client.letters()) == len(wanted)


def is_failed(client: Client, result: Any) -> bool:
    return client.state(result) == "FAILURE"
