"""Workers on ``redis://`` as they are run: our transport takes nothing from what Celery can do."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

FLEET = "tests.apps.fleet"
KOMBUS = "kombu.transport.redis"
OURS = "celery_resilience.transport"

StartWorker = Callable[..., Worker]

#: Nobody maintains it, so it is not among what tests need.
eventlet = pytest.param(
    "eventlet",
    marks=pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed"),
)


class Listener:
    """What Flower and its like do: events, through kombu's transport."""

    def __init__(self, client: Client) -> None:
        self.seen: set[str] = set()
        self._connection = client.app.connection_for_read()
        self._receiver = client.app.events.Receiver(
            self._connection, handlers={"*": lambda event: self.seen.add(event["type"])}
        )
        self._thread = threading.Thread(target=self._receiver.capture, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)
        self._connection.release()


def ask(client: Client, worker: Worker, method: str, **arguments: Any) -> Any:
    def asked() -> Any:
        return client.app.control.broadcast(
            method, arguments=arguments, destination=[worker.name], reply=True, timeout=2, limit=1
        )

    return eventually(asked, message=f"{method} is answered")[0][worker.name]


def names(client: Client, worker: Worker) -> list[str]:
    return sorted(queue["name"] for queue in ask(client, worker, "active_queues"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "gevent", eventlet])
def test_worker_can_do_everything(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Beat, gossip, mingle, events, remote control, a pool that grows, priorities, steps, apps."""
    client.app.conf.broker_transport_options = {"priority_steps": [0, 5]}
    listener = Listener(client)
    common = ["-E", "--prefetch-multiplier", "1", "-l", "DEBUG"]
    first = start_worker(FLEET, broker, pool=pool, env=client.env, arguments=common, sociable=True)
    arguments = [*common, "--autoscale", "3,1"]
    if pool == "prefork":
        arguments += ["-B", "-s", str(tmp_path / "schedule")]
    second = start_worker(
        FLEET, broker, pool=pool, env=client.env, arguments=arguments, sociable=True
    )
    # Mingle and gossip
    assert "sync with 1 nodes" in second.log()
    eventually(lambda: f"{second.name} joined the party" in first.log(), message="gossip")
    # A user's own steps: they consume and publish on the worker's connection
    eventually(lambda: "heard from a step" in client.lines())
    client.put("letters", "by hand", serializer="json")
    eventually(lambda: "heard by hand" in client.lines())
    # Whoever sends does so through kombu's, in the worker's process and in the pool's
    sent = [client.app.send_task("fleet.works", (f"n{n}",), queue="fleet") for n in range(20)]
    hosts = {client.value(result) for result in sent}
    assert hosts <= {first.name, second.name}
    ways = [line.split()[1:] for line in client.lines() if line.startswith("step ")]
    assert len(ways) == 2
    assert all(way == [OURS, *[KOMBUS] * 5] for way in ways)
    ran = [line.split()[2:] for line in client.lines() if line.startswith("ran ")]
    assert all(way == [KOMBUS] * 5 for way in ran)
    # Events
    wanted = {"worker-heartbeat", "task-received", "task-started", "task-succeeded"}
    eventually(lambda: wanted <= listener.seen, message="events")
    listener.close()
    # Remote control
    assert "ok" in ask(client, first, "add_consumer", queue="more")
    eventually(lambda: names(client, first) == ["fleet", "more"])
    more = client.app.send_task("fleet.works", ("more",), queue="more")
    assert client.value(more) == first.name
    assert "ok" in ask(client, first, "cancel_consumer", queue="more")
    eventually(lambda: names(client, first) == ["fleet"])
    left = client.app.send_task("fleet.works", ("left",), queue="more")
    if pool == "prefork":
        processes = lambda: len(ask(client, first, "stats")["pool"]["processes"])  # noqa: E731
        assert processes() == 2
        assert "ok" in ask(client, first, "pool_grow", n=1)
        eventually(lambda: processes() == 3)
        assert "ok" in ask(client, first, "pool_shrink", n=1)
        assert "ok" in ask(client, second, "autoscale", max=4, min=2)
        eventually(lambda: "tick" in client.lines(), message="beat")
    # Priorities, with the worker's steps
    assert "ok" in ask(client, first, "cancel_consumer", queue="fleet")
    assert "ok" in ask(client, second, "cancel_consumer", queue="fleet")
    eventually(lambda: names(client, first) + names(client, second) == [])
    with redis.Redis.from_url(str(broker.redis_url)) as db:
        db.delete("fleet", "fleet\x06\x165")  # beat's
    for number in range(6):
        client.app.send_task("fleet.works", (f"low-{number}",), queue="fleet", priority=9)
    high = client.app.send_task("fleet.works", ("high",), queue="fleet", priority=0)
    before = first.log()
    assert "ok" in ask(client, first, "add_consumer", queue="fleet")
    ranks = lambda: [line.split()[1] for line in client.lines() if "-" in line or "high" in line]  # noqa: E731
    eventually(lambda: len(ranks()) == 7)
    taken = re.search(r"works\[(\S+)\] received", first.log().removeprefix(before))
    assert taken is not None
    assert taken[1] == high.id
    assert client.count("more") == 1
    assert not left.ready()
    for worker in (first, second):
        assert worker.terminate() == 0
