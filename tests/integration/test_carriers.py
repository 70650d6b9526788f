"""What Celery's own tasks carry of an app, in chunks and the like, is not lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"

pytestmark = pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True)


def test_chunk_is_a_task_like_any(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """One that fails is a letter with its arguments; one whose worker is killed runs again."""
    worker = start_worker(SHOP, broker, concurrency=2, env={**client.env, "LEASE": "3"})
    plain = client.app.signature(f"{SHOP}.plain", app=client.app)
    slow = client.app.signature(f"{SHOP}.waits", app=client.app)
    bug = client.app.signature(f"{SHOP}.bug", app=client.app)

    done = client.app.send_task("celery.map", kwargs={"task": dict(plain), "it": [1, 2]})
    assert client.value(done) == [[1], [2]]

    client.app.send_task("celery.starmap", kwargs={"task": dict(bug), "it": [["a"], ["b"]]})
    eventually(lambda: client.count("dead_letter") == 1)
    (letter,) = client.letters()
    assert letter.task == "celery.starmap"
    assert letter.reason == "permanent"
    assert letter.error.error == "TypeError"
    opened = letter.envelope.decoded_arguments()
    assert opened is not None
    assert opened[1]["it"] == [["a"], ["b"]]

    gate = client.record.with_name("gate")
    client.app.send_task("celery.starmap", kwargs={"task": dict(slow), "it": [["w", str(gate)]]})
    eventually(lambda: client.executions()["w"] == 1)
    worker.kill()
    gate.touch()
    start_worker(SHOP, broker, env={**client.env, "LEASE": "3"})
    eventually(lambda: client.executions()["w"] == 2, 60)
