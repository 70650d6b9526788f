"""``async def`` bodies in real workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

ASYNCS = "tests.apps.asyncs"

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)

StartWorker = Callable[..., Worker]


def send(client: Client, task: str, *args: Any, **options: Any) -> Any:
    return client.app.send_task(f"{ASYNCS}.{task}", args, **options)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_async_body_runs_to_its_end(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """It gives its result, is retried like any other, and asks for a retry in Celery's words."""
    worker = start_worker(ASYNCS, broker, pool=pool, concurrency=4, env=client.env)
    results = [send(client, "flaky", f"flaky-{n}", 2) for n in range(8)]
    send(client, "times_out", "late")
    send(client, "asks", "asks")
    for n, result in enumerate(results):
        assert client.value(result) == f"flaky-{n} {result.id}"
    eventually(lambda: client.count("dead_letter") == 2)
    assert {letter.task.rpartition(".")[2]: letter.reason.value for letter in client.letters()} == {
        "times_out": "exhausted",
        "asks": "exhausted",
    }
    ran = client.executions()
    assert [ran[f"flaky-{n}"] for n in range(8)] == [3] * 8
    assert (ran["late"], ran["asks"]) == (3, 2)
    assert worker.terminate() == 0
    assert "never awaited" not in worker.log()


def test_soft_time_limit_cancels_the_body(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Where it waits it is cancelled, where it blocks the limit is raised; it can clean up, and
    may answer with a result."""
    start_worker(ASYNCS, broker, concurrency=3, env=client.env)
    send(client, "waits", "waits", soft_time_limit=1)
    send(client, "blocks", "blocks", soft_time_limit=1)
    half = send(client, "gives_what_it_has", "half", soft_time_limit=1)
    assert client.value(half) == "half of it"
    eventually(lambda: client.count("dead_letter") == 2)
    assert {(letter.task.rpartition(".")[2], letter.reason.value, letter.error.error)
            for letter in client.letters()} == {
        (name, "time_limit", "billiard.exceptions.SoftTimeLimitExceeded")
        for name in ("waits", "blocks")
    }  # fmt: skip
    lines = client.lines()
    assert {"waits cancelled", "waits cleaned up", "blocks SoftTimeLimitExceeded"} <= set(lines)
    after = send(client, "flaky", "after", 0)
    assert client.value(after), "the same processes go on"


def test_gevent_is_refused_with_the_way_out(broker: Broker, client: Client) -> None:
    worker = Worker(ASYNCS, broker, pool="gevent", env=client.env)
    with pytest.raises(AssertionError, match="the worker ended"):
        worker.__enter__()
    assert f"{ASYNCS}.asks" in worker.log()
    assert "--pool prefork, threads or solo" in worker.log()
