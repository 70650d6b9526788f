"""Settling: carry out what was decided about a message, then let the message go.

This is the one place where a decision has an effect: it says what is written and where. The
moves that it begins are repeated until they work.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from celery_resilience.brokers.base import Delivery, Done
from celery_resilience.classify.verdict import Verdict
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History, clipped
from celery_resilience.policy.decision import Drop, GiveUp, Reason, RetryLater
from celery_resilience.policy.terms import LONGEST_DELAY
from celery_resilience.settings import Settings
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.reporting import logger_of_letters
from celery_resilience.worker.pending import PendingSettlements, Settlement

__all__ = ["Settler", "settler_of"]

logger = logging.getLogger("celery_resilience")

#: Where a class of requests says, which one worker makes, who settles them.
_BOUND = "_resilience_settler"
#: As what attempts are counted that have not succeeded.
_COUNTED = ("retried", "dead_letters", "dropped", "results_not_stored")
#: Of the workers that run in this process, the one that was started last at the end.
_settlers: WeakKeyDictionary[Any, list[Settler]] = WeakKeyDictionary()


def settler_of(who: Any) -> Settler | None:
    """The settler of the worker that has made the request *who*, or of the one that runs the app
    *who* in this process, the last if there are several; None outside of a worker."""
    bound = getattr(type(who), _BOUND, None)
    if bound is not None:
        return bound if bound.settings.enabled else None
    running = _settlers.get(getattr(who, "_app", who))
    return running[-1] if running else None


class Settler:
    """Settles every message of one worker."""

    def __init__(self, consumer: Any, settings: Settings) -> None:
        self.settings = settings
        self.pending = PendingSettlements(consumer)
        self._app = consumer.app
        self._request_classes: dict[type, type] = {}
        #: What was decided since the worker's start, for ``celery inspect stats``.
        self.counts = Counter(dict.fromkeys(_COUNTED, 0))

    def begin(self) -> None:
        """Settle, from now on, what the tasks of the app come to; called again it does nothing.

        Not when it is made: a worker that is made need not ever run, and another one may.
        """
        running = _settlers.setdefault(self._app, [])
        if self.settings.enabled and self not in running:
            running.append(self)

    def request_class(self, kind: type) -> type:
        """The class of requests of that *kind* whose messages this worker has received."""
        if kind not in self._request_classes:
            attributes = {"__module__": kind.__module__, _BOUND: self}
            self._request_classes[kind] = type(kind.__name__, (kind,), attributes)
        return self._request_classes[kind]

    def end(self) -> None:
        """The worker has ended."""
        running = _settlers.get(self._app, [])
        if self in running:
            running.remove(self)

    # What is settled

    def settle(
        self,
        delivery: Delivery,
        outcome: AttemptResult,
        *,
        subject: str,
        worker: str,
        task_queue: str | None = None,
        lost: bool = False,
    ) -> None:
        """Carry out *outcome*'s decision about the message *delivery*.

        *task_queue* is the dead-letter queue that its task names; *lost* tells that the process
        that ran it died. Raises nothing.
        """
        envelope, decision = delivery.envelope, outcome.decision
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
            frame=clipped(outcome.error.frame, 200),
        )
        history = history.add(attempt, lost=lost)
        if outcome.context is not None:
            history = replace(history, context=outcome.context)
        if outcome.succeeded is not None:
            history = replace(history, succeeded=outcome.succeeded)
        if isinstance(decision, RetryLater):
            try:
                if outcome.changed is not None:
                    envelope = outcome.changed.apply(envelope)
                copy = _again(envelope, history, decision)
            except Exception as exc:
                logger.exception("%s: no retry can be made of this message", subject)
                outcome = replace(outcome, error=ErrorRecord.of(exc))
                decision = GiveUp(Reason.INVALID, rule="no retry can be made of this message")
            else:
                logger.info(
                    "%s: attempt %d ended (%s, %s): again in %.3f s",
                    subject, attempt.number, attempt.error, decision.rule, decision.delay,
                )  # fmt: skip
                self.counts["retried"] += 1
                self.schedule(
                    delivery, copy, decision.delay, subject=subject, worker=worker,
                    history=history, error=outcome.error, verdict=outcome.verdict,
                    task_queue=task_queue,
                )  # fmt: skip
                return
        if isinstance(decision, Drop):
            logger.info("%s: dropped: %s", subject, decision.why)
            self.counts[decision.counted_as] += 1
            delivery.ack()
            return
        self.bury(
            delivery, decision.reason, subject=subject, worker=worker, history=history,
            error=outcome.error, verdict=outcome.verdict, rule=decision.rule,
            queues=(decision.queue, task_queue), seen=outcome.seen, exception=outcome.exception,
        )  # fmt: skip

    def schedule(
        self, delivery: Delivery, copy: Envelope, delay: float, *, subject: str, worker: str,
        history: History | None = None, error: ErrorRecord | None = None,
        verdict: Verdict | None = None, task_queue: str | None = None,
    ) -> None:  # fmt: skip
        """Let *copy* be delivered in *delay* seconds in place of *delivery*. Raises nothing.

        The rest is for the dead letter that it becomes if its queue has gone, or our header has no
        room beside its own.
        """

        def give_up(reason: Reason, rule: str) -> None:
            self.bury(
                delivery, reason, subject=subject, worker=worker, history=history,
                error=error, verdict=verdict, rule=rule, queues=(task_queue,),
            )  # fmt: skip

        def unroutable() -> None:
            give_up(Reason.UNROUTABLE, f"its queue {delivery.envelope.queue} has gone")

        def too_large() -> None:
            give_up(Reason.INVALID, "its headers leave no room for a retry's")

        def begin(done: Done) -> None:
            self.pending.broker.hold(delivery, copy, delay, done)

        self.pending.start(Settlement(delivery, begin, subject, unroutable, too_large))

    def bury(
        self,
        delivery: Delivery,
        reason: Reason,
        *,
        subject: str,
        worker: str,
        history: History | None = None,
        error: ErrorRecord | None = None,
        verdict: Verdict | None = None,
        rule: str = "",
        queues: tuple[str | None, ...] = (),
        seen: bool = False,
        exception: BaseException | None = None,
    ) -> None:
        """Make a dead letter of the message *delivery*, in the first of *queues* that is given,
        else in the setting's. Raises nothing.

        *seen* says that error trackers know of it; else the line about it is their event, with
        the *exception* where there is one.
        """
        letter = DeadLetter.write(
            reason,
            delivery.envelope,
            history=history or History.loads(delivery.envelope.headers.get(HEADER)),
            error=error or ErrorRecord(),
            kind=verdict.kind.value if verdict else "",
            verdict_rule=verdict.rule if verdict else "",
            category=verdict.category if verdict else "",
            hint=verdict.hint if verdict else "",
            rule=rule,
            worker=worker,
            app_version=self.settings.app_version,
        )
        queue = self.settings.queue_for(delivery.envelope.queue, *queues)
        arguments = self.settings.dead_letter_queue_arguments

        def log(*, pending: bool) -> None:
            """Say that the letter lies there, or that it could not be written yet."""
            self.counts["dead_letters"] += not pending
            logger_of_letters(seen).log(
                logging.WARNING if pending else logging.ERROR,
                "%s: dead letter %s %s %s: %s, attempts: %d (%s, %s)",
                subject, letter.id, "pending for" if pending else "in", queue, reason,
                letter.history.count, letter.error.error or "no error",
                rule or letter.verdict_rule or "no rule",
                exc_info=None if pending else exception,
            )  # fmt: skip

        def write(copy: Envelope, too_large: Callable[[], None] | None = None) -> None:
            def begin(done: Done) -> None:
                self.pending.broker.bury(delivery, copy, queue, arguments, done)

            self.pending.start(
                Settlement(
                    delivery, begin, subject, too_large=too_large, is_letter=True,
                    worked=partial(log, pending=False), pending=partial(log, pending=True),
                )
            )  # fmt: skip

        write(letter.to_envelope(), lambda: write(letter.to_envelope(packed=True)))


def _again(envelope: Envelope, history: History, decision: RetryLater) -> Envelope:
    """The message of the next attempt: the one received, with a new count and our header."""
    if not decision.delay <= LONGEST_DELAY:
        raise ValueError(f"nobody waits {decision.delay:g} s for a retry: a year is the most")
    retries = envelope.fields().get("retries") or 0
    if decision.counted or envelope.protocol == 1:
        envelope = envelope.with_fields(retries=retries + decision.counted)
    # Should that queue have gone when this is due, RabbitMQ keeps the message and tells nothing.
    return envelope.with_header(replace(history, queue=envelope.queue).dumps())
