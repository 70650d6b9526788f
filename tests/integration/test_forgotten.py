"""A worker that the others have forgotten takes messages, and dies before it has said a word."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import redis

from celery_resilience.brokers.redis import leases
from celery_resilience.operate import doctor_redis
from celery_resilience.operate.diagnosis import Diagnosis, Finding
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"


@pytest.mark.parametrize("broker", ["redis", "kombu-redis"], indirect=True)
def test_message_of_a_forgotten_worker_that_was_killed_is_run(
    broker: Broker, client: Client, start_worker: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It takes on with a lease that is not renewed, as if the connection of that had gone."""
    monkeypatch.setattr(leases, "GRACE", 0.0)  # the server was started a moment ago
    monkeypatch.setattr(doctor_redis, "OVERDUE", 0.0)
    short = {**client.env, "LEASE": "2"}
    other = start_worker(SHOP, broker, queues="other", env=short)
    worker = start_worker(
        SHOP, broker, queues="shop", concurrency=4, env={**short, "RENEW": "3600"}
    )
    gate = client.record.with_name("gate")
    with redis.Redis.from_url(broker.redis_url) as db:
        eventually(lambda: db.zcard("celery_resilience:workers") == 1, message="it is forgotten")
        results = [client.send("waits", f"w-{n}", str(gate)) for n in range(4)]
        # Nothing is on its way to it: through kombu's it would die with it.
        eventually(lambda: len(client.executions()) == 4 and holds(db) == 4)
        other.send(signal.SIGSTOP)  # nobody gives anything back before the doctor has looked
        worker.kill()
        (finding,) = eventually(lambda: held_by_the_dead(client))
        assert "4 messages are held by 1 workers that died" in finding.what
        with Diagnosis(client.app, "celery -A shop") as diagnosis:
            assert sum(diagnosis.retries.orphans().values()) == 4
        other.send(signal.SIGCONT)
        # The other one knows it: a new one would find it, for it looks through all that is held.
        eventually(lambda: client.count("shop") == 4 and holds(db) == 0)
    gate.touch()
    start_worker(SHOP, broker, queues="shop", env=short)
    for result in results:
        assert client.value(result)
    assert client.executions() == {f"w-{n}": 2 for n in range(4)}
    assert client.letters() == []


def held_by_the_dead(client: Client) -> list[Finding]:
    with Diagnosis(client.app, "celery -A shop") as diagnosis:
        return [*doctor_redis.held_by_the_dead(diagnosis)]


def holds(db: redis.Redis) -> int:
    return sum(db.hlen(key) for key in db.scan_iter("celery_resilience:held:*"))
