"""A result that a process of the pool has sent in part, when Celery's loop is reset."""

from __future__ import annotations

import os
import pickle
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.asynpool import ResultHandler
from kombu.asynchronous.hub import Hub

from celery_resilience.worker import jobs
from celery_resilience.worker.jobs import keep_partial_results

RESULT = ("a result", "x" * 10_000)
SENT = struct.pack(">i", len(pickle.dumps(RESULT))) + pickle.dumps(RESULT)


class Scene:
    """Celery's handler of results and kombu's loop, with one child's pipe."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.hub: Any = Hub()
        self.handler: Any = object.__new__(ResultHandler)
        self.handler.fileno_to_outq = {self.reading: "the child"}
        self.handler.on_state_change = self.results.append
        pool = SimpleNamespace(_fileno_to_outq=self.handler.fileno_to_outq)
        self.pool: Any = SimpleNamespace(
            _pool=pool, register_with_event_loop=self.register, stop=self.stop
        )
        keep_partial_results(self.hub, self.pool)
        self.pool.register_with_event_loop(self.hub)

    def register(self, hub: Any) -> None:
        self.handler.register_with_event_loop(hub)
        hub.add_reader(self.reading, self.handler.handle_event, self.reading)

    def stop(self) -> None:
        self.results.append("stopped")

    def turn(self) -> None:
        next(self.hub.create_loop())

    def lose_the_connection(self) -> None:
        self.hub.reset()
        self.pool.register_with_event_loop(self.hub)

    def close(self) -> None:
        self.hub.close()
        os.close(self.reading)
        os.close(self.writing)


@pytest.mark.parametrize("cut", [2, 4, 100, len(SENT) - 1])
def test_partial_result_is_read_on_after_a_lost_connection(cut: int) -> None:
    """What its child sends next is read as well."""
    scene = Scene()
    os.write(scene.writing, SENT[:cut])
    scene.turn()
    for _ in range(2):
        scene.lose_the_connection()
    os.write(scene.writing, SENT[cut:])
    scene.turn()
    assert scene.results == [RESULT]
    os.write(scene.writing, SENT)
    scene.turn()
    assert scene.results == [RESULT, RESULT]
    scene.close()


@pytest.mark.parametrize("then", ["reconnects", "ends"])
def test_partial_result_of_a_child_that_was_replaced_is_forgotten(then: str) -> None:
    """The next child may have been given the same file descriptor."""
    scene = Scene()
    os.write(scene.writing, SENT[:100])
    scene.turn()
    scene.hub.reset()
    scene.handler.fileno_to_outq[scene.reading] = "another child"
    while True:  # its own pipe is empty
        try:
            os.read(scene.reading, 65536)
        except BlockingIOError:
            break
    if then == "reconnects":
        scene.pool.register_with_event_loop(scene.hub)
        os.write(scene.writing, SENT)
        scene.turn()
        assert scene.results == [RESULT]
    else:
        os.write(scene.writing, SENT)
        scene.pool.stop()
        assert scene.results == ["stopped"]
    scene.close()


def test_pool_of_another_worker_is_kept_too() -> None:
    """Workers of one process share their loop."""
    scene = Scene()
    other: Any = SimpleNamespace(
        _pool=SimpleNamespace(_fileno_to_outq={}), register_with_event_loop=list, stop=list
    )
    keep_partial_results(scene.hub, other)
    assert other.stop is not list
    os.write(scene.writing, SENT[:100])
    scene.turn()
    scene.lose_the_connection()
    os.write(scene.writing, SENT[100:])
    scene.turn()
    assert scene.results == [RESULT]
    scene.close()


def test_partial_result_is_finished_when_the_worker_ends() -> None:
    """Celery reads the pipe again from where it is."""
    scene = Scene()
    os.write(scene.writing, SENT[:100])
    scene.turn()
    scene.hub.reset()
    os.write(scene.writing, SENT[100:])
    scene.pool.stop()
    assert scene.results == [RESULT, "stopped"]
    scene.close()


def test_partial_result_of_a_stopped_child_keeps_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_REST", 0.05)
    scene = Scene()
    os.write(scene.writing, SENT[:100])
    scene.turn()
    scene.hub.reset()
    scene.pool.stop()
    assert scene.results == ["stopped"]
    scene.close()


def test_partial_result_of_a_dead_child_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    os.write(scene.writing, SENT[:100])
    scene.turn()
    os.close(scene.writing)
    scene.hub.reset()
    scene.pool.stop()
    assert "End of file during message" in caplog.text
    scene.writing = os.open(os.devnull, os.O_RDONLY)
    scene.close()
