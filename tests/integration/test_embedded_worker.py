"""Workers in the process of a test, as Celery's own pytest plugin starts them."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from inspect import getclosurevars
from typing import Any

import celery.contrib.testing.tasks  # noqa: F401  the plugin sends a ping
import pytest
import redis
from celery import Celery, _state
from celery.contrib.testing.worker import start_worker
from celery.result import _set_task_join_will_block
from celery.worker import WorkController

from celery_resilience import Policy, ResilientTask, TransientError, install
from celery_resilience.brokers.connect import open_broker
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.worker.settle import Settler
from tests.servers import eventually
from tests.worker import Broker

pytest_plugins = ["celery.contrib.pytest"]

EVERY = pytest.mark.parametrize(
    "broker", ["redis", "resilient-redis", "rabbitmq-classic"], indirect=True
)
SOON = Policy(max_retries=2, backoff=0.05, jitter="none")


@pytest.fixture
def celery_app(broker: Broker) -> Iterator[Celery]:
    """The plugin's worker runs this app."""
    before = set(_state._on_app_finalizers)
    # Each app that is finalized gets the tasks of all others in this process.
    _state._on_app_finalizers.intersection_update(filter(is_celerys, before))
    root, default, current = logging.getLogger(), _state.default_app, _state._tls.current_app
    level, handlers = root.level, root.handlers[:]
    app = Celery("embedded", broker=broker.broker_url, backend=broker.backend_url)
    app.conf.update(
        task_default_queue="embedded",
        task_default_queue_type=broker.queue_type,
        broker_connection_retry_on_startup=True,
    )
    with closing(app):
        yield app
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(before)
    # What the plugin leaves behind.
    root.setLevel(level)
    root.handlers[:] = handlers
    _state.default_app, _state._tls.current_app = default, current
    gc.collect()  # a result that goes says so to its store, while that is there


def is_celerys(finalizer: Any) -> bool:
    """Whether the task that *finalizer* makes is one of Celery's own."""
    task = getclosurevars(finalizer).nonlocals.get("fun", finalizer)
    return str(task.__module__).startswith("celery.")


def letters(app: Celery) -> list[str]:
    """The tasks of the dead letters."""
    with app.connection_for_read() as connection:
        broker = open_broker(connection)
        with closing(broker):
            return [DeadLetter.from_envelope(f.envelope).task for f in broker.browse("dead_letter")]


def define(app: Celery, **options: Any) -> tuple[Any, Any]:
    """A task that succeeds at its third attempt, and one that never does."""

    @app.task(name="embedded.flaky", bind=True, failure_policy=SOON, **options)
    def flaky(self: Any, name: str) -> str:
        if self.request.retries < 2:
            raise TransientError(name)
        return f"{name} done"

    @app.task(name="embedded.broken", failure_policy=SOON, **options)
    def broken() -> None:
        raise TransientError("never")

    return flaky, broken


def takes_through(worker: Any) -> tuple[str, Any]:
    """The module of the transport that *worker* takes through, and what it says of it."""
    consumer = worker.consumer
    said = consumer.blueprint.steps["celery_resilience"].info(consumer)["resilience"]
    return type(consumer.connection.transport).__module__, said.get("redis_transport")


def check(app: Celery, flaky: Any, broken: Any) -> None:
    """Retries and letters come, of tasks that are sent now."""
    before = len(letters(app))
    result = flaky.delay("it")
    broken.delay()
    eventually(lambda: app.backend.get_task_meta(result.id)["status"] == "SUCCESS")
    eventually(lambda: letters(app)[before:] == ["embedded.broken"])


@EVERY
def test_install_comes_after_the_worker_has_started(celery_app: Any, celery_worker: Any) -> None:
    install(celery_app)
    flaky, broken = define(celery_app)
    celery_worker.reload()
    check(celery_app, flaky, broken)
    on_redis = celery_app.conf.broker_url.startswith("redis")
    if on_redis:
        assert takes_through(celery_worker) == ("kombu.transport.redis", "kombu")
    lose_the_connection(celery_worker)
    check(celery_app, flaky, broken)
    if on_redis:
        assert takes_through(celery_worker) == ("celery_resilience.transport", "own")


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_task_of_ours_comes_after_the_worker_has_started(
    celery_app: Any, celery_worker: Any
) -> None:
    flaky, broken = define(celery_app, base=ResilientTask)
    lose_the_connection(celery_worker)  # it looks at all tasks anew
    check(celery_app, flaky, broken)
    lose_the_connection(celery_worker)  # and connects with what it has found there
    assert takes_through(celery_worker) == ("celery_resilience.transport", "own")
    check(celery_app, flaky, broken)


@pytest.mark.parametrize("broker", ["redis", "resilient-redis"], indirect=True)
def test_message_of_a_worker_that_was_told_late_is_not_lost_with_it(
    celery_app: Any, celery_worker: Any, broker: Broker, caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Until its next connection kombu holds it, and gives it back when that is over."""
    caplog.set_level(logging.WARNING, "celery_resilience")
    logger = logging.getLogger("celery_resilience")
    logger.addHandler(caplog.handler)
    request.addfinalizer(lambda: logger.removeHandler(caplog.handler))  # it is the next test's, too
    install(celery_app)
    gate = threading.Event()

    @celery_app.task(name="embedded.waits")
    def waits() -> None:
        gate.wait(30)

    celery_worker.reload()
    result = waits.delay()
    with redis.Redis.from_url(broker.redis_url) as db:
        eventually(lambda: db.hlen("unacked") == 1)
        ((_, score),) = db.zrange("unacked_index", 0, -1, withscores=True)
        assert score == pytest.approx(time.time(), abs=60)
        assert [*db.scan_iter("celery_resilience:held:*")] == []
        gate.set()
        eventually(lambda: celery_app.backend.get_task_meta(result.id)["status"] == "SUCCESS")
        eventually(lambda: db.hlen("unacked") == 0)
    assert "redelivered after the visibility_timeout (3600 s)" in caplog.text


@EVERY
def test_worker_that_is_only_made_leaves_the_one_alone_that_runs(
    celery_app: Any, request: pytest.FixtureRequest
) -> None:
    install(celery_app)
    flaky, broken = define(celery_app)
    request.getfixturevalue("celery_worker")
    made = WorkController(app=celery_app, pool="solo", hostname="other@tests")
    _set_task_join_will_block(False)  # as the plugin does
    assert "celery_resilience" in made.consumer.blueprint.steps
    check(celery_app, flaky, broken)
    if celery_app.conf.broker_url.startswith("redis"):
        assert takes_through(request.getfixturevalue("celery_worker"))[1] == "own"
        with celery_app.connection_for_read() as connection:
            assert type(connection.transport).__module__ == "kombu.transport.redis"


@pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic"], indirect=True)
def test_each_of_two_workers_settles_what_it_has_received(
    celery_app: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[tuple[Any, str]] = []
    settle = Settler.settle

    def noting(self: Settler, received: Any, *args: Any, **options: Any) -> None:
        settled.append((self, received.envelope.queue))
        settle(self, received, *args, **options)

    monkeypatch.setattr(Settler, "settle", noting)
    install(celery_app)
    _, broken = define(celery_app)
    first = request.getfixturevalue("celery_worker")
    # There is one event loop in a process, and one name, which Celery's second one would wait for.
    alone = {"use_eventloop": False, "hostname": "other@tests", "perform_ping_check": False}
    with start_worker(celery_app, queues=["other"], **alone) as second:
        workers = {"embedded": first, "other": second}
        for queue in workers:
            broken.apply_async(queue=queue)
        eventually(lambda: len(letters(celery_app)) == 2)
    by = {queue: w.consumer.blueprint.steps["celery_resilience"] for queue, w in workers.items()}
    assert {queue for _, queue in settled} == {"embedded", "other"}
    assert all(settler is by[queue].settler for settler, queue in settled)


def lose_the_connection(worker: Any) -> None:
    """Let the loop hear that its connection is lost, and wait until it consumes again."""
    consumer = worker.consumer
    before = consumer.connection

    def lose() -> None:
        raise ConnectionResetError("by the test")

    consumer.hub.call_soon(lose)
    eventually(lambda: consumer.connection not in (None, before))
    eventually(lambda: consumer.blueprint.started == len(consumer.steps))
