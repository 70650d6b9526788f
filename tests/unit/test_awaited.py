"""A call in a thread that is waited for once."""

from __future__ import annotations

import os
import threading
import time

import pytest

from celery_resilience.brokers.within import Awaited


class Slow:
    """A call that returns when it may."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        self.gate.wait(20)
        return self.calls


def eventually_get(awaited: Awaited[int]) -> int:
    until = time.monotonic() + 10
    while True:
        try:
            return awaited.get()
        except TimeoutError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_answer_in_time_is_returned_or_raised() -> None:
    assert Awaited(10, lambda: 42, "it").get() == 42
    failing = Awaited(10, lambda: 1 // 0, "it")
    for _ in range(2):  # each asks anew
        with pytest.raises(ZeroDivisionError):
            failing.get()


def test_hanging_call_is_waited_for_once_and_its_late_answer_is_for_the_next() -> None:
    slow = Slow()
    awaited = Awaited(0.5, slow, "the server")
    with pytest.raises(TimeoutError, match=r"the server has not answered for 0\.5 s"):
        awaited.get()
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError, match="the server has not answered for"):
            awaited.get()
    assert time.monotonic() - began < 25  # and not 50
    slow.gate.set()
    assert eventually_get(awaited) == 1
    assert awaited.get() == 2


def test_answer_that_nobody_asks_for_any_more_is_given_back() -> None:
    slow, late = Slow(), list[int]()
    told = threading.Event()

    def give_back(result: int) -> None:
        late.append(result)
        told.set()

    awaited = Awaited(0.05, slow, "it", give_back)
    with pytest.raises(TimeoutError):
        awaited.get()
    awaited.leave()
    slow.gate.set()
    assert told.wait(10)
    assert late == [1]
    assert awaited.get() == 2  # it may be asked again


def test_child_that_was_forked_meanwhile_asks_for_itself() -> None:
    """It has no such thread."""
    slow = Slow()
    awaited = Awaited(0.05, slow, "it")
    with pytest.raises(TimeoutError):
        awaited.get()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            slow.gate.set()
            code = 0 if eventually_get(awaited) == 2 else 2
        finally:
            os._exit(code)
    slow.gate.set()
    assert os.waitpid(child, 0)[1] == 0
