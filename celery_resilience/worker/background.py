"""What a worker's loop does not wait for: calls to servers that are not its broker.

The fate of a message may depend on what a result store says, and its owner wants to read there how
it ended. A store that accepts connections and never answers would stop the whole worker. So it is
asked in a thread, and its answer is waited for a few seconds at most: then the worker goes
on as if the store were away, and what it was to be told it is told when it answers again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

__all__ = ["ANSWER", "FORK", "Aside", "Loop"]

logger = logging.getLogger("celery_resilience")

#: How long an answer is waited for, in seconds; while one is overdue, no other is waited for.
ANSWER = 5.0
#: For how long a fork waits until what is being done is over, in seconds: the new process would
#: find the locks taken, for ever. What takes longer waits for its server, and holds none.
FORK = 2.0
#: How many calls that are not waited for any more are kept until the store answers.
_KEPT = 1000


class Loop(Protocol):
    """Where answers are taken in: the worker's loop."""

    @property
    def looping(self) -> bool:
        """Whether it runs: before and after, everything is done at once."""

    def in_loop(self, call: Callable[[], None]) -> None:
        """Have *call* done there; any thread may say so."""

    def call_after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Have *call* done there in *delay* seconds; the loop's thread says so."""


@dataclass(eq=False)
class _Call:
    """One call, and who wants to know its answer."""

    what: str
    call: Callable[[], Any]
    then: Callable[[Any], None]
    keep: bool
    #: By the monotonic clock; 0: not yet.
    begun: float = 0.0
    asked: float = field(default_factory=time.monotonic)
    #: *then* has got the answer, or None.
    told: threading.Event = field(default_factory=threading.Event)


class Aside:
    """Makes calls one after the other, in a thread of its own."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._calls: deque[_Call] = deque()
        #: What is to be done in the loop.
        self._answered: deque[Callable[[], None]] = deque()
        self._now: _Call | None = None
        self._lock = threading.RLock()
        #: Held while a call is made.
        self._making = threading.Lock()
        self._some = threading.Event()
        self._thread: threading.Thread | None = None
        #: It was said that an answer is overdue, and not yet that they come again.
        self._said = False
        _all.add(self)

    def ask(
        self,
        what: str,
        call: Callable[[], Any],
        then: Callable[[Any], None] = lambda answer: None,
        *,
        keep: bool = False,
    ) -> None:
        """Make *call*, and pass its answer on to *then*, in the worker's loop. Raises nothing.

        *then* gets None where *call* raises, or has not returned in time (``ANSWER``). What is not
        even begun by then is left undone, unless it is to *keep*. *what* is for the log.
        """
        one, late = _Call(what, call, then, keep), self._is_late()
        if keep or not late:
            if len(self._calls) < _KEPT:
                self._calls.append(one)
                self._begin()
            else:
                logger.error("%s: not done: too many calls wait for an answer of that server", what)
                late = True
        if late:
            self._give_up(one)
        if not self._loop.looping:
            self._wait(one)
            self._take_in()
        elif not late:
            self._loop.in_loop(partial(self._loop.call_after, ANSWER, self._give_up, one))

    def check(self) -> None:
        """Give up what is late: a lost connection takes the loop's timers with it."""
        for one in self._open():
            if time.monotonic() - one.asked > ANSWER:
                self._give_up(one)

    def finish(self) -> None:
        """Wait for what was asked, as long as for any answer; the loop has ended."""
        for one in self._open():
            self._wait(one)
        self._take_in()

    def _wait(self, one: _Call) -> None:
        if not one.told.wait(0 if self._is_late() else ANSWER):
            self._give_up(one)

    def _open(self) -> list[_Call]:
        with self._lock:
            found = [self._now, *self._calls]
        return [one for one in found if one is not None and not one.told.is_set()]

    def _is_late(self) -> bool:
        now = self._now
        return now is not None and time.monotonic() - now.begun > ANSWER

    def _give_up(self, one: _Call) -> None:
        with self._lock:
            if one.told.is_set():
                return
            if not (one.keep or one.begun):
                with suppress(ValueError):  # it was never taken on
                    self._calls.remove(one)
            hangs, said = self._now or one, self._said
            self._said = True
        if not said:
            logger.warning(
                "%s: no answer for %.3g s: the worker goes on without it, and does not wait again "
                "until it answers",
                hangs.what, time.monotonic() - (hangs.begun or hangs.asked),
            )  # fmt: skip
        self._tell(one, None)

    def _tell(self, one: _Call, answer: Any) -> None:
        with self._lock:
            if one.told.is_set():
                return
            self._answered.append(partial(self._follow, one, answer))
            one.told.set()
        if self._loop.looping:
            self._loop.in_loop(self._take_in)

    def _follow(self, one: _Call, answer: Any) -> None:
        try:
            one.then(answer)
        except Exception:
            logger.exception("%s: the step after it failed", one.what)

    def _take_in(self) -> None:
        while self._answered:
            with suppress(IndexError):  # another thread was faster
                self._answered.popleft()()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery_resilience.worker.background", daemon=True
            )
            self._thread.start()
        self._some.set()

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            while True:
                with self._making:
                    if not self._make_next():
                        break

    def hold(self) -> bool:
        """Begin no other call, and let the one that is being made end if that is soon; whether it
        has: then ``go_on`` is to be called."""
        now = self._now
        waits = now is not None and time.monotonic() - now.begun > FORK
        return self._making.acquire(timeout=0 if waits else FORK)

    def go_on(self) -> None:
        """Make calls again."""
        self._making.release()

    def _make_next(self) -> bool:
        with self._lock:
            if not self._calls:
                return False
            one = self._now = self._calls.popleft()
            one.begun = time.monotonic()
        answer = None
        try:
            answer = one.call()
        except Exception as exc:
            logger.warning("%s: %s: %s", one.what, type(exc).__name__, exc)
        with self._lock:
            self._now = None
            again = self._said and time.monotonic() - one.begun < ANSWER
            self._said = self._said and not again
        if again:
            logger.warning("%s: it answers again", one.what)
        self._tell(one, answer)
        return True


_all: weakref.WeakSet[Aside] = weakref.WeakSet()
_held: list[Aside] = []


def _before_fork() -> None:
    _held.extend(aside for aside in list(_all) if aside.hold())


def _after_fork() -> None:
    while _held:
        _held.pop().go_on()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_all.clear)
