"""Calls that are left behind in their thread when they take too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

__all__ = ["Awaited", "within"]

T = TypeVar("T")


def within(
    seconds: float,
    call: Callable[[], T],
    what: str,
    late: Callable[[Any], None] = lambda result: None,
) -> T:
    """What *call* returns or raises; TimeoutError, which names *what*, after *seconds*.

    A name server that does not answer, or a disk that has gone, can't be interrupted. *late* gets
    what is returned after all.
    """
    result: list[T] = []
    raised: list[BaseException] = []
    lock, given_up = threading.Lock(), False

    def run() -> None:
        try:
            found = call()
        except BaseException as exc:
            raised.append(exc)
            return
        with lock:
            if not given_up:
                result.append(found)
                return
        with suppress(Exception):
            late(found)

    thread = threading.Thread(target=run, name="celery_resilience.within", daemon=True)
    thread.start()
    thread.join(seconds)
    with lock:
        given_up = not (result or raised)
    if given_up:
        raise TimeoutError(f"{what} has not answered for {seconds:g} s")
    if raised:
        raise raised[0]
    return result[0]


class Awaited(Generic[T]):
    """A *call* in a thread that is waited for once, for *seconds*.

    While it is overdue the others who ask are told so at once: a worker's loop in which many ask
    would else stand for each of them. What it returns after all is for the next one who asks, or
    for *late* if not.
    """

    def __init__(
        self,
        seconds: float,
        call: Callable[[], T],
        what: str,
        late: Callable[[T], None] = lambda result: None,
    ) -> None:
        self._seconds = seconds
        self._call = call
        self._what = what
        self._late = late
        self._lock = threading.Lock()
        self._run: _Run[T] | None = None

    def get(self) -> T:
        """What the call returns or raises; TimeoutError while it is overdue."""
        with self._lock:
            run = self._run
            first = run is None or run.was_left_by_a_fork
            if run is None or first:
                run = self._run = _Run(self._call)
        run.thread.join(self._seconds if first else 0)
        with self._lock:
            if not run.is_over:
                waited = self._seconds if first else time.monotonic() - run.began
                raise TimeoutError(f"{self._what} has not answered for {waited:.3g} s")
            if self._run is run:
                self._run = None
        return run.outcome()

    def leave(self) -> None:
        """The answer is not wanted any more."""
        with self._lock:
            run, self._run = self._run, None
        if run is not None:
            run.then(self._late)


class _Run(Generic[T]):
    """One time that the call is made."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: list[T] = []
        self._raised: BaseException | None = None
        self._then: Callable[[T], None] | None = None
        self._lock = threading.Lock()
        self.is_over = False
        self.began = time.monotonic()
        self.thread = threading.Thread(
            target=self._make, name="celery_resilience.awaited", daemon=True
        )
        self.thread.start()

    @property
    def was_left_by_a_fork(self) -> bool:
        """Whether this process has no such thread, and never had."""
        return not self.thread.is_alive() and not self.is_over

    def _make(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as exc:
            self._raised = exc
        with self._lock:
            self.is_over, then = True, self._then
        if then is not None:
            self._tell(then)

    def then(self, then: Callable[[T], None]) -> None:
        """Have *then* called with the result when it is there."""
        with self._lock:
            self._then, over = then, self.is_over
        if over:
            self._tell(then)

    def _tell(self, then: Callable[[T], None]) -> None:
        with suppress(Exception):
            for result in self._result:
                then(result)

    def outcome(self) -> T:
        if self._raised is not None:
            raise self._raised
        return self._result[0]
