"""What is asked aside: answers come into the loop, and one that does not come is not waited for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.utils.objects import cached_property

from celery_resilience.worker import background as module
from celery_resilience.worker import result_store
from celery_resilience.worker.background import Aside


class Loop:
    """A worker's loop that does what it is told when the test says so."""

    looping = True

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []
        self.some = threading.Event()

    def in_loop(self, call: Callable[[], None]) -> None:
        self.posted.append(call)
        self.some.set()

    def call_after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.later.append(lambda: call(*args))

    def run(self) -> None:
        self.some.clear()
        while self.posted:
            self.posted.pop(0)()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    monkeypatch.setattr(module, "ANSWER", 0.05)
    gate = threading.Event()
    yield gate
    gate.set()


def until(said: list[Any], loop: Loop, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(said) < count and time.monotonic() < deadline:
        loop.some.wait(0.1)
        loop.run()


def test_answer_is_taken_in_by_the_loop(loop: Loop) -> None:
    said: list[Any] = []
    where: list[int] = []

    def call() -> int:
        where.append(threading.get_ident())
        return 42

    Aside(loop).ask("a state", call, said.append)
    assert said == []
    until(said, loop, 1)
    assert said == [42]
    assert where != [threading.get_ident()]


def test_call_that_raises_is_no_answer(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    said: list[Any] = []
    Aside(loop).ask("a state", lambda: 1 / 0, said.append)
    until(said, loop, 1)
    assert said == [None]
    assert "a state: ZeroDivisionError" in caplog.text


def test_hanging_call_is_waited_for_once_and_said_once(
    loop: Loop, hanging: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    aside, said, made = Aside(loop), [], []  # type: ignore[var-annotated]
    aside.ask("the first", hanging.wait, lambda answer: said.append("first"))
    time.sleep(0.1)  # its time is over; the loop's timer says so
    aside.ask("kept", lambda: made.append("kept"), lambda answer: said.append("kept"), keep=True)
    aside.ask("not kept", lambda: made.append("not"), lambda answer: said.append("not"))
    loop.run()  # what comes later does not wait at all
    assert said == ["kept", "not"]
    for due in loop.later:
        due()
    loop.run()
    assert said == ["kept", "not", "first"]
    assert caplog.text.count("no answer for") == 1
    hanging.set()
    deadline = time.monotonic() + 10
    while not made and time.monotonic() < deadline:
        time.sleep(0.01)
    aside.ask("after it", lambda: made.append("after"), lambda answer: said.append("after"))
    until(said, loop, 4)
    assert made == ["kept", "after"]  # what might come too late was never done
    assert said[3:] == ["after"]


def test_worker_that_ends_waits_for_what_was_asked(loop: Loop, hanging: threading.Event) -> None:
    aside, said = Aside(loop), []  # type: ignore[var-annotated]
    aside.ask("one", lambda: 1, said.append)
    aside.ask("two", hanging.wait, said.append)
    loop.looping = False
    began = time.monotonic()
    aside.finish()
    loop.run()
    assert time.monotonic() - began < 5
    assert said[-1] is None
    assert len(said) == 2
    aside.ask("three", lambda: 3, said.append)  # at once: nobody comes to take it in later
    assert said[-1] is None
    assert len(said) == 3


def test_check_gives_up_without_timers(loop: Loop, hanging: threading.Event) -> None:
    """A lost connection takes them with it."""
    aside, said = Aside(loop), []  # type: ignore[var-annotated]
    aside.ask("one", hanging.wait, said.append)
    loop.posted.clear()
    time.sleep(0.1)
    aside.check()
    loop.run()
    assert said == [None]


def test_fork_waits_for_what_is_being_done(loop: Loop) -> None:
    """The new process would find its locks taken for ever."""
    aside, said, begun = Aside(loop), [], threading.Event()  # type: ignore[var-annotated]
    lock = threading.Lock()

    def call() -> None:
        with lock:
            begun.set()
            time.sleep(0.1)

    aside.ask("one", call, said.append)
    begun.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    until(said, loop, 1)
    aside.ask("another", lambda: None, said.append)  # it goes on in the parent
    until(said, loop, 2)
    assert said == [None, None]


def test_fork_renews_the_locks_of_the_result_store(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be asked for longer than a fork waits; the new process stores results there, too."""
    begun, goes_on, parent = threading.Event(), threading.Event(), os.getpid()

    class Store:
        @cached_property
        def client(self) -> str:
            if os.getpid() == parent:
                begun.set()
                goes_on.wait(10)
            return "client"

        def mark_as_failure(self, *args: Any, **options: Any) -> None:
            assert self.client

    monkeypatch.setattr(module, "FORK", 0)
    task = SimpleNamespace(backend=Store())
    request = SimpleNamespace(id="1", name="task", _task=task, _context=None, store_errors=True)
    result_store.store_failure(request, Aside(loop), ValueError())
    begun.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        os._exit(0 if Store().client == "client" else 1)
    ended = os.waitpid(child, 0)[1]
    goes_on.set()
    assert ended == 0
