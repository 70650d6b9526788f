"""Handlers that run in a greenlet of their own, without one: what is spawned is called by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import platforms
from celery.apps import worker
from celery.exceptions import WorkerTerminate
from celery.worker import state

from celery_resilience.worker import green_signals
from celery_resilience.worker.green_signals import GreenSignals

Spawned = list[Callable[[], None]]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spawned]:
    """What was spawned and has not run."""
    spawned: Spawned = []
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGQUIT)}
    monkeypatch.setattr(platforms, "signals", platforms.signals)
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(state, "should_terminate", None)
    GreenSignals(lambda run, *args: spawned.append(lambda: run(*args))).install()
    yield spawned
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handler_of_celerys_only_begins_a_greenlet(spawned: Spawned) -> None:
    sender: Any = type("AWorker", (), {"hostname": "w"})
    worker._shutdown_handler(sender, sig="SIGTERM", how="Warm")
    os.kill(os.getpid(), signal.SIGTERM)
    assert state.should_stop is None
    spawned.pop()()
    assert state.should_stop == 0


def test_so_does_one_that_a_handler_has_put_in_its_place(spawned: Spawned) -> None:
    sender: Any = type("AWorker", (), {"hostname": "w"})
    again = worker.install_worker_term_hard_handler
    again(sender, callback=lambda each: again(each, callback=worker.on_hard_shutdown))
    os.kill(os.getpid(), signal.SIGQUIT)
    spawned.pop()()
    os.kill(os.getpid(), signal.SIGQUIT)
    with pytest.raises(WorkerTerminate):  # to the hub, and so to the main greenlet
        spawned.pop()()
    platforms.signals.wait()  # for nothing: both have ended


def test_other_signals_are_handled_where_they_come(spawned: Spawned) -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    try:
        platforms.signals["SIGUSR1"] = lambda number, frame: seen.append(number)
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]
    assert spawned == []


def test_default_stays_the_default(spawned: Spawned) -> None:
    platforms.signals["SIGQUIT"] = signal.SIG_DFL  # type: ignore[assignment]
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL


def test_end_waits_until_a_handler_has_ended(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold shutdown waits in it for the pool, whose tasks are given back afterwards."""
    seen: list[int] = []
    platforms.signals["SIGQUIT"] = lambda number, frame: seen.append(number)
    os.kill(os.getpid(), signal.SIGQUIT)
    monkeypatch.setattr(green_signals.time, "sleep", lambda seconds: spawned.pop()())
    platforms.signals.wait()  # type: ignore[attr-defined]
    assert seen == [signal.SIGQUIT]
