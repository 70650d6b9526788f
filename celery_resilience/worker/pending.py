"""Settlements that are not over: one change in the broker each, repeated until it works.

A settlement that fails is kept and repeated (the settlement, never the body) with a growing pause;
until it works its message is not acknowledged, so that the death of this worker returns it to
the broker.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from celery_resilience.brokers.base import (
    Broker,
    ChecksConnection,
    Delivery,
    Done,
    NotOurs,
    TooLarge,
    Unroutable,
)
from celery_resilience.worker.background import Aside
from celery_resilience.worker.loop import WorkerLoop
from celery_resilience.worker.pause import Pause, Why, how_to_fix

__all__ = ["PendingSettlements", "Result", "Settlement"]

logger = logging.getLogger("celery_resilience")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
#: How long those are kept whose messages were not ours any more, in seconds: they may be delivered
#: to us again.
_LEFT_FOR = 3600.0


class Result(Enum):
    """How one try of a settlement has ended."""

    DONE = "done"
    NOT_OURS = "not ours"  #: the message is not this worker's any more: nothing was written
    UNROUTABLE = "unroutable"  #: the queue that the copy is meant for has gone
    TOO_LARGE = "too large"  #: the copy's headers are more than the broker takes
    FAILED = "failed"

    @classmethod
    def of(cls, problem: BaseException | None) -> Result:
        """What *problem*, a broker's answer, means."""
        if problem is None:
            return cls.DONE
        known = {NotOurs: cls.NOT_OURS, Unroutable: cls.UNROUTABLE, TooLarge: cls.TOO_LARGE}
        return next((r for kind, r in known.items() if isinstance(problem, kind)), cls.FAILED)


@dataclass
class Settlement:
    """A change in the broker that is not over yet."""

    delivery: Delivery
    #: Begins it; called again, after a pause, for as long as it fails.
    begin: Callable[[Done], None]
    #: Told how each try has ended, and its number; whether the settlement is over. One that is
    #: done or not ours is over in any case.
    ended: Callable[[Result, int], bool]
    #: It writes a dead letter: while that fails, consuming is paused.
    is_letter: bool = False
    tries: int = 0
    #: It has failed and waits for its next try: only the first that begins it goes on.
    waiting: bool = False
    number: int = field(default_factory=itertools.count(1).__next__)


class _Store:
    """The settlements that have begun, and those whose messages were not ours lately."""

    def __init__(self) -> None:
        self._open: dict[int, Settlement] = {}
        #: With the time of each, by the monotonic clock.
        self._left: deque[tuple[float, Settlement]] = deque()

    def add(self, settlement: Settlement) -> None:
        self._open[settlement.number] = settlement

    def take(self, settlement: Settlement) -> bool:
        """Take out *settlement*; whether it was there."""
        return self._open.pop(settlement.number, None) is not None

    def all(self) -> list[Settlement]:
        return list(self._open.values())

    def waiting(self) -> list[Settlement]:
        return [settlement for settlement in self.all() if settlement.waiting]

    def leave(self, settlement: Settlement) -> None:
        """Its message is not ours."""
        now = time.monotonic()
        while self._left and now - self._left[0][0] > _LEFT_FOR:
            self._left.popleft()
        self._left.append((now, settlement))

    def take_left(self, message: Any) -> Settlement | None:
        """Take out the one that was left, of *message*."""
        for at, settlement in [*self._left]:
            if settlement.delivery.message is message:
                self._left.remove((at, settlement))
                return settlement
        return None


class _FailureLog:
    """Says once what fails: of a full queue or a broker that is away all messages say the same."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def failed(self, subject: str, problem: BaseException) -> None:
        said, fix = f"{type(problem).__name__}: {problem}", how_to_fix(problem)
        logger.log(
            logging.DEBUG if said in self._said else logging.ERROR,
            "%s: settlement failed (%s); message kept unacknowledged, will retry%s",
            subject, said, f". Fix: {fix}" if fix else "",
        )  # fmt: skip
        if len(self._said) > 100:  # problems that name an id
            self._said.clear()
        self._said.add(said)

    def works_again(self) -> None:
        self._said.clear()


class PendingSettlements:
    """The settlements of one worker, through the Broker of its newest connection."""

    def __init__(self, consumer: Any) -> None:
        self.loop = WorkerLoop(consumer)
        self.pause = Pause(consumer)
        #: For what this worker's loop must not wait for.
        self.aside = Aside(self.loop)
        self._broker: Broker | None = None
        self._store = _Store()
        self._log = _FailureLog()
        self._lock = threading.RLock()

    # The worker's connection

    @property
    def broker(self) -> Broker:
        """Where the worker is connected to; raises ConnectionError where it is not."""
        if self._broker is None:
            raise ConnectionError("the worker is not connected to its broker")
        return self._broker

    def use(self, broker: Broker) -> None:
        """Go through *broker*, which belongs to the worker's newest connection."""
        old, self._broker = self._broker, broker
        self.loop.is_here()
        if old is not None:
            old.close()
        self.pause.forget()
        for settlement in self._store.all():
            self._repeat(settlement)

    def check(self) -> None:
        """Look after the connection; the worker's event loop calls it now and then."""
        self.aside.check()
        if isinstance(self._broker, ChecksConnection):
            # As every settlement: our lock first, the broker's second.
            with self._lock:
                self._broker.check()

    def drain(self, timeout: float) -> None:
        """Finish, within *timeout* seconds, what has been begun; the worker is going down."""
        self.aside.finish()
        self.loop.run_posted()
        with self._lock:
            for settlement in self._store.all():
                self._repeat(settlement)
            if self._broker is not None:
                self._broker.flush(timeout)

    def close(self) -> list[Settlement]:
        """Give back the connection; what could not be settled."""
        if self._broker is not None:
            self._broker.close()
            self._broker = None
        self.loop.close()
        return self._store.all()

    # What is pending

    @property
    def unfinished(self) -> int:
        """How many settlements are not over yet."""
        return len(self._store.all())

    @property
    def failing(self) -> int:
        """How many settlements have failed, and will be tried again."""
        return len(self._store.waiting())

    @property
    def tags(self) -> set[str]:
        """The delivery tags of what they settle: it is done, and must not be delivered again."""
        return {settlement.delivery.message.delivery_tag for settlement in self._store.all()}

    def start(self, settlement: Settlement) -> None:
        """Begin *settlement*, in the thread of the loop while that runs. Raises nothing."""
        # Without the lock: a shutdown may have interrupted the loop that holds it, and wait there
        # until this thread has ended.
        self._store.add(settlement)
        self.loop.in_loop(lambda: self._begin(settlement))

    def take_up(self, message: Any) -> bool:
        """Settle *message*, which is ours again, if that did not work before; False if its
        settlement is over."""
        with self._lock:
            left = self._store.take_left(message)
            if left is not None:
                self._begin(left)
                return True
            return any(each.delivery.message is message for each in self._store.all())

    def _begin(self, settlement: Settlement) -> None:
        with self._lock:
            self._store.add(settlement)
            settlement.tries, settlement.waiting = settlement.tries + 1, False
            try:
                settlement.begin(lambda problem: self._over(settlement, problem))
            except BaseException as exc:
                self._over(settlement, exc)
                if not isinstance(exc, Exception):
                    raise

    def _repeat(self, settlement: Settlement) -> None:
        with self._lock:
            if settlement.waiting:
                self._begin(settlement)

    def _over(self, settlement: Settlement, problem: BaseException | None) -> None:
        if not self._store.take(settlement):
            return
        subject, result = settlement.delivery.subject, Result.of(problem)
        if settlement.is_letter and not any(each.is_letter for each in self._store.waiting()):
            self.pause.end(Why.LETTERS)
        if result is Result.DONE and settlement.tries > 1:
            logger.warning("%s: settled on try %d", subject, settlement.tries)
            if not self._store.waiting():
                self._log.works_again()
        elif result is Result.NOT_OURS:
            self._store.leave(settlement)
            logger.warning("%s: not settled: %s", subject, problem)
        over = False
        try:
            over = settlement.ended(result, settlement.tries)
        except Exception:
            logger.exception("%s: %s, which could not be told", subject, result.value)
        finally:  # a greenlet may be out of time
            if problem is None:  # its copy is there
                settlement.delivery.ack()
            elif not over and result is not Result.NOT_OURS:
                self._again(settlement, problem)

    def _again(self, settlement: Settlement, problem: BaseException) -> None:
        self._log.failed(settlement.delivery.subject, problem)
        self._store.add(settlement)
        settlement.waiting = True
        if not self.loop.looping:
            return
        if settlement.is_letter:
            self.pause.begin(Why.LETTERS)
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(settlement.tries - 1, 10))
        self.loop.call_after(pause, self._repeat, settlement)
