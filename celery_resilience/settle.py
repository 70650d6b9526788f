"""Settling: carry out what was decided about a message, then let the message go.

This is the one place where a decision has an effect on the broker. A move that fails is kept
and repeated (the move, never the body) with a growing pause until it works; until then the
message is not let go, so that the death of this worker gives it back to the broker.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from celery import bootsteps

from celery_resilience.brokers import Broker, Done, NotOurs, Received, Unroutable
from celery_resilience.decision import Drop, GiveUp, Reason, RetryLater
from celery_resilience.envelope import HEADER, Envelope
from celery_resilience.facts import ErrorFacts
from celery_resilience.history import Attempt, History, clipped
from celery_resilience.letter import DeadLetter
from celery_resilience.outcome import Outcome
from celery_resilience.policy import LONGEST_DELAY
from celery_resilience.settings import Settings
from celery_resilience.verdict import Verdict

__all__ = ["Settler", "settler_of"]

logger = logging.getLogger("celery_resilience")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0

#: The state of a worker whose loop runs; the stubs do not know it.
_RUN: int = bootsteps.RUN  # type: ignore[attr-defined]

_settlers: WeakKeyDictionary[Any, Settler] = WeakKeyDictionary()


def settler_of(app: Any) -> Settler | None:
    """The settler of the worker that runs *app* in this process; None outside of a worker."""
    return _settlers.get(app)


@dataclass
class _Move:
    """A settlement that is not over yet."""

    received: Received
    #: Begins the move; called again, after a pause, for as long as it fails.
    begin: Callable[[Done], None]
    #: ``task[id]``, for the log.
    subject: str
    #: What to do when the queue that a retry belongs to has gone.
    unroutable: Callable[[], None] | None = None
    tries: int = 0
    #: It has failed and waits for its next try: whoever begins it first is the only one.
    waiting: bool = False
    number: int = field(default_factory=itertools.count(1).__next__)


class Settler:
    """Settles every message of one worker."""

    def __init__(self, consumer: Any, settings: Settings) -> None:
        self.settings = settings
        self._consumer = consumer
        self._broker: Broker | None = None
        self._moves: dict[int, _Move] = {}
        self._thread = threading.get_ident()
        #: What other threads than the loop's want to have done there.
        self._posted: deque[Callable[[], None]] = deque()
        self._wake: tuple[int, int] | None = None
        self._lock = threading.RLock()
        if settings.enabled:
            _settlers[consumer.app] = self

    # The worker's connection and loop

    def use(self, broker: Broker) -> None:
        """Settle through *broker*, which belongs to the worker's newest connection."""
        old, self._broker = self._broker, broker
        self._thread = threading.get_ident()
        if old is not None:
            old.close()

    def watch(self, hub: Any) -> None:
        """Let *hub*, the worker's event loop, run what other threads post."""
        if self._wake is None:
            self._wake = os.pipe()
            for end in self._wake:
                os.set_blocking(end, False)
        hub.add_reader(self._wake[0], self._read_posted)

    def check(self) -> None:
        """Look after the connection; the worker's event loop calls it now and then."""
        check = getattr(self._broker, "check", None)
        if check is not None:
            check()

    @property
    def looping(self) -> bool:
        """Whether the worker's loop runs: before and after, everything is done at once."""
        return bool(self._consumer.blueprint.state == _RUN)

    @property
    def unfinished(self) -> int:
        """How many settlements are not over yet."""
        return len(self._moves) + len(self._posted)

    def drain(self, timeout: float) -> None:
        """Finish, within *timeout* seconds, what has been begun; the worker is going down."""
        self._read_posted()
        with self._lock:
            for move in list(self._moves.values()):
                self._repeat(move)
            if self._broker is not None:
                self._broker.flush(timeout)

    def close(self) -> None:
        """Give back the connection and the wake-up pipe."""
        if self._moves:
            logger.error(
                "%d messages could not be settled; their broker will deliver them again",
                len(self._moves),
            )
        if self._broker is not None:
            self._broker.close()
            self._broker = None
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
            self._wake = None

    # What is settled

    def settle(
        self,
        received: Received,
        outcome: Outcome,
        *,
        subject: str,
        worker: str,
        task_queue: str | None = None,
        lost: bool = False,
    ) -> None:
        """Carry out *outcome*'s decision about the message *received*.

        *task_queue* is the dead-letter queue that its task names; *lost* tells that the process
        that ran it died. Raises nothing.
        """
        envelope, decision = received.envelope, outcome.decision
        history = History.loads(envelope.headers.get(HEADER))
        attempt = Attempt(
            number=history.count + 1,
            at=outcome.at,
            ran=round(outcome.ran, 6),
            worker=worker,
            error=outcome.error.error,
            message=clipped(outcome.error.message),
            kind=outcome.verdict.kind.value,
            rule=outcome.verdict.rule,
            delay=round(decision.delay, 6) if isinstance(decision, RetryLater) else None,
        )
        history = history.add(attempt, lost=lost)
        if outcome.context is not None:
            history = replace(history, context=outcome.context)
        if isinstance(decision, RetryLater):
            try:
                copy = _again(envelope, history, decision)
            except Exception as exc:
                logger.exception("%s: no retry can be made of this message", subject)
                outcome = replace(outcome, error=ErrorFacts.of(exc))
                decision = GiveUp(Reason.INVALID, rule="no retry can be made of this message")
            else:
                logger.info(
                    "%s: attempt %d ended (%s, %s): again in %.3f s",
                    subject, attempt.number, attempt.error, decision.rule, decision.delay,
                )  # fmt: skip
                self._hold(received, copy, decision, outcome, history, subject, worker, task_queue)
                return
        if isinstance(decision, Drop):
            logger.info("%s: dropped: %s", subject, decision.why)
            received.let_go()
            return
        self.bury(
            received, decision.reason, subject=subject, worker=worker, history=history,
            error=outcome.error, verdict=outcome.verdict, rule=decision.rule,
            queues=(decision.queue, task_queue),
        )  # fmt: skip

    def _hold(
        self, received: Received, copy: Envelope, decision: RetryLater, outcome: Outcome,
        history: History, subject: str, worker: str, task_queue: str | None,
    ) -> None:  # fmt: skip
        def unroutable() -> None:
            self.bury(
                received, Reason.UNROUTABLE, subject=subject, worker=worker, history=history,
                error=outcome.error, verdict=outcome.verdict,
                rule=f"its queue {received.envelope.queue} has gone", queues=(task_queue,),
            )  # fmt: skip

        def begin(done: Done) -> None:
            self._brokers().hold(received, copy, decision.delay, done)

        self._start(_Move(received, begin, subject, unroutable))

    def bury(
        self,
        received: Received,
        reason: Reason,
        *,
        subject: str,
        worker: str,
        history: History | None = None,
        error: ErrorFacts | None = None,
        verdict: Verdict | None = None,
        rule: str = "",
        queues: tuple[str | None, ...] = (),
    ) -> None:
        """Make a dead letter of the message *received*, in the first of *queues* that is given,
        else in the setting's. Raises nothing."""
        letter = DeadLetter.write(
            reason,
            received.envelope,
            history=history or History.loads(received.envelope.headers.get(HEADER)),
            error=error or ErrorFacts(),
            kind=verdict.kind.value if verdict else "",
            verdict_rule=verdict.rule if verdict else "",
            category=verdict.category if verdict else "",
            hint=verdict.hint if verdict else "",
            rule=rule,
            worker=worker,
            app_version=self.settings.app_version,
        )
        queue = self.settings.queue_for(received.envelope.queue, *queues)
        arguments = self.settings.dead_letter_queue_arguments
        copy = letter.to_envelope()
        logger.error(
            "%s: dead letter %s in %s: %s, attempts: %d (%s, %s)",
            subject, letter.id, queue, reason, letter.history.count,
            letter.error.error or "no error", rule or letter.verdict_rule or "no rule",
        )  # fmt: skip

        def begin(done: Done) -> None:
            self._brokers().bury(received, copy, queue, arguments, done)

        self._start(_Move(received, begin, subject))

    # Moves, and what becomes of them

    def _start(self, move: _Move) -> None:
        if self._wake is not None and self.looping and threading.get_ident() != self._thread:
            self._post(lambda: self._begin(move))
        else:
            self._begin(move)

    def _begin(self, move: _Move) -> None:
        with self._lock:
            self._moves[move.number] = move
            move.tries, move.waiting = move.tries + 1, False
            try:
                move.begin(lambda problem: self._over(move, problem))
            except Exception as exc:
                self._over(move, exc)

    def _repeat(self, move: _Move) -> None:
        with self._lock:
            if move.waiting:
                self._begin(move)

    def _over(self, move: _Move, problem: BaseException | None) -> None:
        if self._moves.pop(move.number, None) is None:
            return
        if problem is None:
            if move.tries > 1:
                logger.warning("%s: settled at try %d", move.subject, move.tries)
            move.received.let_go()
        elif isinstance(problem, NotOurs):
            logger.warning("%s: not settled: %s", move.subject, problem)
        elif isinstance(problem, Unroutable) and move.unroutable is not None:
            move.unroutable()
        else:
            self._again(move, problem)

    def _again(self, move: _Move, problem: BaseException) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(move.tries - 1, 10))
        logger.log(
            logging.ERROR if move.tries == 1 else logging.DEBUG,
            "%s: could not be settled (%s: %s); the settlement is repeated until it works",
            move.subject, type(problem).__name__, problem,
        )  # fmt: skip
        self._moves[move.number], move.waiting = move, True
        if self.looping:
            self._consumer.timer.call_after(pause, self._repeat, (move,))

    def _brokers(self) -> Broker:
        if self._broker is None:
            raise ConnectionError("the worker is not connected to its broker")
        return self._broker

    # Other threads

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


def _again(envelope: Envelope, history: History, decision: RetryLater) -> Envelope:
    """The message of the next attempt: the one received, with a new count and our header."""
    if not decision.delay <= LONGEST_DELAY:
        raise ValueError(f"nobody waits {decision.delay:g} s for a retry: a year is the most")
    retries = envelope.fields().get("retries") or 0
    if decision.counted or envelope.protocol == 1:
        envelope = envelope.with_fields(retries=retries + decision.counted)
    return envelope.with_header(history.dumps())
