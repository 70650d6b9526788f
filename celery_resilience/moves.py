"""Moves: one change in the broker each, begun at once and repeated until it works.

A move that fails is kept and repeated (the move, never the body) with a growing pause; until it
works its message is not let go, so that the death of this worker gives it back to the broker.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from celery import bootsteps
from celery.worker import state

from celery_resilience.aside import Aside
from celery_resilience.brokers import Broker, Done, NotOurs, Received, TooLarge, Unroutable
from celery_resilience.pause import Pause, Why, how_to_mend

__all__ = ["Move", "Moves"]

logger = logging.getLogger("celery_resilience")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
#: So many moves that came to nothing are kept: their messages may be delivered to us again.
_MOST_LEFT = 100

#: The state of a worker whose loop runs; the stubs do not know it.
_RUN: int = bootsteps.RUN  # type: ignore[attr-defined]


@dataclass
class Move:
    """A change in the broker that is not over yet."""

    received: Received
    #: Begins the move; called again, after a pause, for as long as it fails.
    begin: Callable[[Done], None]
    #: ``task[id]``, for the log.
    subject: str
    #: What to do when the queue that a retry belongs to has gone.
    unroutable: Callable[[], None] | None = None
    #: What to do when the copy's headers are more than the broker takes.
    too_large: Callable[[], None] | None = None
    #: It writes a dead letter: while that fails, no more messages are taken.
    is_letter: bool = False
    #: Called when it is over and has worked, and when its first try has failed: for the log.
    worked: Callable[[], None] = lambda: None
    pending: Callable[[], None] = lambda: None
    tries: int = 0
    #: It has failed and waits for its next try: whoever begins it first is the only one.
    waiting: bool = False
    number: int = field(default_factory=itertools.count(1).__next__)


class Moves:
    """The moves of one worker, through the Broker of its newest connection."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._broker: Broker | None = None
        self._moves: dict[int, Move] = {}
        self._thread = threading.get_ident()
        #: What other threads than the loop's want to have done there.
        self._posted: deque[Callable[[], None]] = deque()
        self._wake: tuple[int, int] | None = None
        self._lock = threading.RLock()
        #: Those that came to nothing, for their messages were not ours any more; the newest.
        self._left: deque[Move] = deque(maxlen=_MOST_LEFT)
        #: What has been logged of moves that fail.
        self._said: set[str] = set()
        #: Called with the message of a settlement that came to nothing.
        self.came_to_nothing: Callable[[Any], None] = lambda message: None
        self.pause = Pause(consumer)
        #: For what this worker's loop must not wait for.
        self.aside = Aside(self)

    # The worker's connection and loop

    def use(self, broker: Broker) -> None:
        """Go through *broker*, which belongs to the worker's newest connection."""
        old, self._broker = self._broker, broker
        self._thread = threading.get_ident()
        if old is not None:
            old.close()
        self.pause.forget()
        for move in list(self._moves.values()):
            self._repeat(move)

    def consumes_again(self) -> None:
        """The worker consumes, whether it is paused or not: if it is, it stops again."""
        self.pause.forget()

    def watch(self, hub: Any) -> None:
        """Let *hub*, the worker's event loop, run what other threads post."""
        if self._wake is None:
            self._wake = os.pipe()
            for end in self._wake:
                os.set_blocking(end, False)
        hub.add_reader(self._wake[0], self._read_posted)

    def check(self) -> None:
        """Look after the connection; the worker's event loop calls it now and then."""
        self.aside.check()
        check = getattr(self._broker, "check", None)
        if check is not None:
            # As every move: our lock first, the broker's second.
            with self._lock:
                check()

    def start_again(self, request: Any, delay: float) -> None:
        """Let the worker start *request*, which has its slot in the pool, in *delay* seconds."""
        self.call_after(delay, self._consumer.controller._process_task, request)

    def call_after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call *call* in *delay* seconds, where the worker's loop is."""
        self._consumer.timer.call_after(delay, call, args)

    @property
    def looping(self) -> bool:
        """Whether the worker's loop runs: before and after, everything is done at once."""
        return bool(self._consumer.blueprint.state == _RUN)

    @property
    def ending(self) -> bool:
        """Whether the worker has been told to end."""
        told = any(each is not None and each is not False for each in _told())
        return told or bool(self._consumer.controller.blueprint.state != _RUN)

    @property
    def unfinished(self) -> int:
        """How many settlements are not over yet."""
        return len(self._moves)

    @property
    def failing(self) -> int:
        """How many settlements have failed, and will be tried again."""
        return len(self._waiting())

    @property
    def tags(self) -> set[str]:
        """The delivery tags of what they settle: it is done, and nobody shall have it again."""
        return {move.received.message.delivery_tag for move in list(self._moves.values())}

    def take_up(self, message: Any) -> bool:
        """Settle *message*, which is ours again, if that has come to nothing before; False if its
        settlement is over."""
        with self._lock:
            for move in [*self._left]:
                if move.received.message is message:
                    self._left.remove(move)
                    self._begin(move)
                    return True
            return any(move.received.message is message for move in [*self._moves.values()])

    def drain(self, timeout: float) -> None:
        """Finish, within *timeout* seconds, what has been begun; the worker is going down."""
        self.aside.finish()
        self._read_posted()
        with self._lock:
            for move in list(self._moves.values()):
                self._repeat(move)
            if self._broker is not None:
                self._broker.flush(timeout)

    def close(self) -> None:
        """Give back the connection and the wake-up pipe."""
        for move in self._moves.values():
            if move.received.acked or move.received.no_ack:
                why = "acks_late=False" if move.received.acked else "its queue is no_ack"
                logger.critical(
                    "%s: LOST: it could not be settled, and its broker has let it go before it "
                    "ran (%s)",
                    move.subject, why,
                )  # fmt: skip
            else:
                unless = ", unless it went with its queue" if move.received.volatile else ""
                logger.error(
                    "%s: could not be settled; its broker will deliver it again%s",
                    move.subject, unless,
                )  # fmt: skip
        if self._broker is not None:
            self._broker.close()
            self._broker = None
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
            self._wake = None

    # Moves, and what becomes of them

    def start(self, move: Move) -> None:
        """Begin *move*, in the thread of the worker's loop while that runs. Raises nothing."""
        # Without the lock: a shutdown may have interrupted the loop that holds it, and wait there
        # until this thread has ended.
        self._moves[move.number] = move
        self.in_loop(lambda: self._begin(move))

    def _begin(self, move: Move) -> None:
        with self._lock:
            self._moves[move.number] = move
            move.tries, move.waiting = move.tries + 1, False
            try:
                move.begin(lambda problem: self._over(move, problem))
            except Exception as exc:
                self._over(move, exc)

    def _repeat(self, move: Move) -> None:
        with self._lock:
            if move.waiting:
                self._begin(move)

    def _over(self, move: Move, problem: BaseException | None) -> None:
        if self._moves.pop(move.number, None) is None:
            return
        if move.is_letter and not any(other.is_letter for other in self._waiting()):
            self.pause.end(Why.LETTERS)
        if problem is None:
            if move.tries > 1:
                logger.warning("%s: settled at try %d", move.subject, move.tries)
                if not self._waiting():
                    self._said.clear()
            move.worked()
            move.received.let_go()
        elif isinstance(problem, NotOurs):
            self._left.append(move)
            logger.warning("%s: not settled: %s", move.subject, problem)
            self.came_to_nothing(move.received.message)
        elif isinstance(problem, Unroutable) and move.unroutable is not None:
            move.unroutable()
        elif isinstance(problem, TooLarge) and move.too_large is not None:
            move.too_large()
        else:
            self._again(move, problem)

    def _again(self, move: Move, problem: BaseException) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(move.tries - 1, 10))
        said = f"{type(problem).__name__}: {problem}"
        mend = how_to_mend(problem)
        # Of a full queue or a broker that is away every message says the same.
        logger.log(
            logging.DEBUG if said in self._said else logging.ERROR,
            "%s: could not be settled (%s); it is kept, and the settlement repeated until it "
            "works%s",
            move.subject, said, f". To mend it: {mend}" if mend else "",
        )  # fmt: skip
        if len(self._said) > 100:  # whoever puts an id into his words
            self._said.clear()
        self._said.add(said)
        if move.tries == 1:
            move.pending()
        self._moves[move.number], move.waiting = move, True
        if move.is_letter and self.looping:
            self.pause.begin(Why.LETTERS)
        if self.looping:
            self._consumer.timer.call_after(pause, self._repeat, (move,))

    def _waiting(self) -> list[Move]:
        return [move for move in list(self._moves.values()) if move.waiting]

    @property
    def broker(self) -> Broker:
        """Where the worker is connected to; raises ConnectionError where it is not."""
        if self._broker is None:
            raise ConnectionError("the worker is not connected to its broker")
        return self._broker

    # Other threads

    def in_loop(self, call: Callable[[], None]) -> None:
        """Have *call* done in the thread of the worker's loop while that runs, else here."""
        if self._wake is not None and self.looping and threading.get_ident() != self._thread:
            self._post(call)
        else:
            call()

    def _post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        assert self._wake is not None
        with suppress(BlockingIOError):  # the pipe is full: the loop is awake already
            os.write(self._wake[1], b"!")

    def _read_posted(self) -> None:
        if self._wake is not None:
            with suppress(BlockingIOError):
                os.read(self._wake[0], 65536)
        while self._posted:
            self._posted.popleft()()


def _told() -> tuple[object, object]:
    return state.should_stop, state.should_terminate
