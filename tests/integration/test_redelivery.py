"""A task that takes its whole worker with it, under a supervisor that starts it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from celery_resilience.policy.decision import Reason
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
StartWorker = Callable[..., Worker]


@contextmanager
def supervised(worker: Worker) -> Iterator[list[int]]:
    """Start *worker* whenever it has died, as systemd does; how often is in the list's length."""
    deaths: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            process = worker._process
            if process is not None and process.poll() is not None:
                deaths.append(process.returncode)
                worker.start()

    # The worker's leash is held by the thread that starts it: it has to outlive the test's body.
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield deaths
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        # Not on redis://: a worker that is killed takes along what kombu has just popped.
        ("resilient-redis", "prefork"),
        ("resilient-redis", "threads"),
        ("rabbitmq-classic", "prefork"),
        ("rabbitmq-quorum", "threads"),
    ],
    indirect=["broker"],
)
def test_task_that_crashes_its_worker_is_a_letter_and_its_neighbours_are_not(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """It is started three times; neighbours that were running or received meanwhile finish."""
    env = {**client.env, "LEASE": "2"}
    client.send("kills_worker", "poison")
    neighbours = [client.send("slow", f"slow-{n}", 1) for n in range(3)]
    neighbours += [client.send("flaky", f"flaky-{n}", 1) for n in range(12)]
    worker = start_worker(SHOP, broker, pool=pool, concurrency=4, env=env)
    with supervised(worker) as deaths:
        eventually(lambda: client.count("dead_letter") == 1, timeout=80)
        for result in neighbours:
            assert client.value(result)
        (letter,) = client.letters()
        assert (letter.task, letter.reason) == (f"{SHOP}.kills_worker", Reason.WORKER_LOST)
        assert "max_worker_losses=3" in letter.rule
        assert client.executions()["poison"] == 3
        assert len(deaths) == 3
        assert all(client.executions()[f"slow-{n}"] <= 4 for n in range(3))


@pytest.mark.parametrize("broker", ["resilient-redis"], indirect=True)
def test_success_that_could_not_be_acknowledged_is_no_letter(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Its worker has died three times, the last time when it was done: the result store knows."""
    client.send("done_then_killed", "done")
    worker = start_worker(SHOP, broker, pool="threads", env={**client.env, "LEASE": "2"})
    with supervised(worker) as deaths:
        eventually(lambda: "its success is stored" in worker.log(), timeout=80)
    assert len(deaths) == client.executions()["done"] == 3
    assert client.count("shop") == client.count("dead_letter") == 0


@pytest.mark.parametrize(
    ("broker", "pool"),
    [  # On redis:// kombu itself may lose a message when its worker is killed.
        ("resilient-redis", "prefork"),
        ("rabbitmq-classic", "prefork"),
        ("rabbitmq-quorum", "threads"),
    ],
    indirect=["broker"],
)
def test_two_tasks_that_crash_their_worker_take_no_neighbour_along(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """Each death is counted for all that are delivered again: together, they are two too many."""
    env = {**client.env, "LEASE": "2"}
    neighbours = [client.send("slow", f"before-{n}", 0.05) for n in range(5)]
    for poison in ("poison-1", "poison-2"):
        client.send("kills_worker", poison, 0.0)
    neighbours += [client.send("slow", f"after-{n}", 0.05) for n in range(30)]
    worker = start_worker(SHOP, broker, pool=pool, env=env)
    with supervised(worker):
        for result in neighbours:
            assert client.value(result, timeout=100)
        eventually(lambda: client.count("dead_letter") == 2, timeout=80)
    letters = client.letters()
    assert [letter.task for letter in letters] == [f"{SHOP}.kills_worker"] * 2
    assert all(client.executions()[poison] <= 3 for poison in ("poison-1", "poison-2"))


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic"], indirect=True)
def test_requeued_message_comes_later_and_not_for_ever(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """``Reject(requeue=True)``: stock Celery delivers it again at once, and for ever."""
    start_worker(SHOP, broker, env=client.env)
    patient = client.send("puts_back", "patient", 1)
    client.send("puts_back", "loops", 1000)
    assert client.value(patient) == "patient done"
    eventually(lambda: client.count("dead_letter") == 1, timeout=40)
    (letter,) = client.letters()
    assert (letter.task, letter.reason) == (f"{SHOP}.puts_back", Reason.REJECTED)
    assert 2 <= client.executions()["loops"] <= 5
    assert letter.history.count == client.executions()["loops"]


@pytest.mark.parametrize(
    ("broker", "held_by"),
    [("rabbitmq-classic", "auto"), ("rabbitmq-quorum", "auto"), ("rabbitmq-classic", "worker")],
    indirect=["broker"],
)
def test_messages_that_wait_for_the_only_process_are_not_counted(
    broker: Broker, held_by: str, client: Client, start_worker: StartWorker
) -> None:
    """RabbitMQ counts what the worker held, whether it was started or not."""
    neighbours = [client.send("slow", f"before-{n}", 0.05) for n in range(2)]
    client.send("kills_worker", "poison", 1.0)
    neighbours += [client.send("slow", f"after-{n}", 0.05) for n in range(8)]
    arguments = ["--hold-retries", held_by]
    worker = start_worker(SHOP, broker, concurrency=1, arguments=arguments, env=client.env)
    with supervised(worker):
        for result in neighbours:
            assert client.value(result, timeout=100)
        eventually(lambda: client.count("dead_letter") == 1, timeout=80)
    (letter,) = client.letters()
    assert letter.task == f"{SHOP}.kills_worker"
    ran = client.executions()
    assert ran.pop("poison") <= 3
    assert sum(ran.values()) <= len(neighbours) + 3, "what was put back ran as well"


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_message_requeued_while_it_waits_for_the_process_does_not_run_there(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    worker = start_worker(SHOP, broker, concurrency=1, env=client.env)
    results = [client.send("slow", f"slow-{number}", 2.0) for number in range(4)]
    for begun in (1, 2):
        eventually(lambda: sum(client.executions().values()) == begun)  # noqa: B023
        worker.kill()
        worker.start()
    for result in results:
        assert client.value(result)
    eventually(lambda: client.count("shop") == 0)
    time.sleep(2.5)
    assert sum(client.executions().values()) <= len(results) + 2


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_restart_while_an_isolated_run_waits_its_moment_is_not_counted(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    worker = start_worker(SHOP, broker, concurrency=1, env=client.env)
    result = client.send("slow", "innocent", 3.0)
    for begun in (1, 2):
        eventually(lambda: client.executions()["innocent"] == begun)  # noqa: B023
        worker.kill()
        since = len(worker.log())
        worker.start()
    # Once as RabbitMQ delivers it again, once as it is published anew: then it waits.
    eventually(lambda: worker.log(since).count("] received") >= 2, every=0.003)
    worker.terminate()
    worker.start()
    assert client.value(result)
    assert client.letters() == []


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_solo_worker_takes_nothing_along_that_has_ended(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Celery's acknowledges when its loop comes round: after all that was prefetched has run."""
    worker = start_worker(SHOP, broker, pool="solo", env=client.env)
    worker.terminate()
    for number in range(3):
        client.send("slow", f"over-{number}", 0.02)
    client.send("parks", "waits")
    client.send("kills_worker", "killer")
    client.send("slow", "left")
    worker.start()
    assert worker.wait() != 0
    eventually(lambda: client.count("shop") >= 2)
    time.sleep(0.5)  # for what should not come
    assert client.count("shop") == 2
