"""Dead letters can't be written for a while: decisions are kept, and nothing more is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from kombu import Queue

from celery_resilience.worker.pause import how_to_fix
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
StartWorker = Callable[..., Worker]


@contextmanager
def blocked(client: Client, broker: Broker) -> Iterator[Callable[[], object]]:
    """A dead-letter queue that nobody can write to, and what mends it."""
    if broker.name == "redis":
        with redis.Redis.from_url(broker.redis_url) as db:
            db.set("dead_letter", "no list")
            yield lambda: db.delete("dead_letter")
        return
    with client.app.connection_for_write() as connection:
        channel = connection.default_channel
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        Queue("dead_letter", queue_arguments=full).bind(channel).queue_declare()
        client.put("dead_letter", b"it is full")
        yield lambda: channel.queue_purge("dead_letter")


def none_is_taken(client: Client) -> list[Any]:
    """Send five good ones, of which a worker that pauses takes none."""
    good = [client.send("flaky", f"good-{n}", 0) for n in range(5)]
    eventually(lambda: client.count("shop") == 5)
    client.ping()  # it has had time to take one, and its loop is alive
    assert client.count("shop") == 5
    return good


def all_go_on(client: Client, good: list[Any]) -> None:
    """It is mended: one letter, and no body has run twice."""
    for result in good:
        assert client.value(result, timeout=60)
    eventually(lambda: len(client.letters()) == 1)
    assert client.executions() == {"refused": 1, **{f"good-{n}": 1 for n in range(5)}}


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_consuming_is_paused_until_dead_letters_can_be_written(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """It says so once, and how to mend it; then it goes on by itself, and no body runs twice."""
    with blocked(client, broker) as mend:
        worker = start_worker(SHOP, broker, pool=pool, env=client.env)
        client.send("refused", "refused")
        eventually(lambda: "consuming is paused" in worker.log())
        good = none_is_taken(client)
        mend()
        all_go_on(client, good)
    log = worker.log()
    assert log.count("settlement failed") == 1
    assert "Fix: " in log
    assert "consuming is resumed" in log


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_retry_that_can_not_be_written_is_no_reason(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """It is kept as well, and nobody else is held up."""
    with redis.Redis.from_url(str(broker.redis_url)) as db:
        db.set("celery_resilience:waiting:shop", "no set")
        worker = start_worker(SHOP, broker, env=client.env)
        kept = client.send("flaky", "kept", 1)
        eventually(lambda: "settlement failed" in worker.log())
        assert client.value(client.send("flaky", "other", 0))
        assert "consuming is paused" not in worker.log()
        db.delete("celery_resilience:waiting:shop")
    assert client.value(kept)
    assert client.executions() == {"kept": 2, "other": 1}


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_letter_that_can_be_written_does_not_end_it(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Into another queue, while the one before it is still kept."""
    gate = client.record.with_name("gate")
    with blocked(client, broker) as mend:
        env = {**client.env, "AHEAD": "2"}  # as when quick tasks were run
        worker = start_worker(SHOP, broker, concurrency=1, env=env)
        first = client.send("waits", "w", str(gate))
        eventually(lambda: client.executions()["w"] == 1)
        client.send("refused", "refused")
        client.send("own_letters", "theirs")
        eventually(lambda: client.count("shop") == 0, message="all of them are received")
        gate.touch()
        eventually(lambda: len(client.letters("dead.shop")) == 1)
        client.ping()
        assert "consuming is resumed" not in worker.log()
        mend()
        assert client.value(first, timeout=60) == "w done"
    assert client.executions() == {"w": 2, "refused": 1, "theirs": 1}


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_pause_lasts_over_a_lost_connection(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """The next one consumes at first, as every new connection does."""
    paused = "consuming is paused"
    with blocked(client, broker) as mend:
        worker = start_worker(SHOP, broker, env=client.env)
        client.send("refused", "refused")
        eventually(lambda: paused in worker.log())
        with redis.Redis.from_url(str(broker.redis_url)) as db:
            db.client_kill_filter(_type="normal", skipme=True)
            db.client_kill_filter(_type="pubsub", skipme=True)
        eventually(lambda: worker.log().count(paused) == 2)
        good = [client.send("flaky", f"good-{n}", 0) for n in range(5)]
        client.ping()  # it has had time to take one
        assert client.count("shop") == 5
        mend()
        for result in good:
            assert client.value(result, timeout=60)
        eventually(lambda: len(client.letters()) == 1)
    assert client.executions() == {"refused": 1, **{f"good-{n}": 1 for n in range(5)}}


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_message_received_before_the_pause_comes_back_into_its_own_queue(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Which its routing key does not tell: only the consumer knew, who has been cancelled."""
    gate = client.record.with_name("gate")
    with blocked(client, broker) as mend:
        worker = start_worker(SHOP, broker, env=client.env)
        with client.app.connection_for_write() as connection:
            channel = connection.default_channel
            channel.exchange_declare("side", "direct", durable=True, auto_delete=False)
            channel.queue_bind("shop", "side", "elsewhere")
        running = client.send("waits", "w", str(gate), exchange="side", routing_key="elsewhere")
        eventually(lambda: client.executions()["w"] == 1)
        client.send("refused", "refused")
        eventually(lambda: "consuming is paused" in worker.log())
        gate.touch()
        eventually(lambda: client.count("shop") == 1)
        mend()
        assert client.value(running, timeout=60) == "w done"


def test_advice_is_for_what_the_broker_says() -> None:
    assert "configure and write" in how_to_fix(RuntimeError("(403) ACCESS_REFUSED - queue"))
    assert "maxmemory" in how_to_fix(RuntimeError("OOM command not allowed"))
    assert how_to_fix(ConnectionError("refused")) == ""
