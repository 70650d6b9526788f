"""Settling: carry out what was decided about a message, then acknowledge it.

This is the one place where a decision has an effect: it says what is written and where. The
settlements that it begins are repeated until they work; how a delivery ended is told after.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from celery_resilience.brokers.base import Delivery, Done
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History, clipped
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.policy.decision import Drop, GiveUp, Reason, RetryLater
from celery_resilience.policy.terms import LONGEST_DELAY
from celery_resilience.settings import Settings
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.reporting import logger_of_letters
from celery_resilience.worker.outcome import FailedAttempt, Outcomes
from celery_resilience.worker.pending import PendingSettlements, Result, Settlement

__all__ = ["Settler", "settler_of"]

logger = logging.getLogger("celery_resilience")

#: Of the workers that run in this process, the one that was started last at the end.
_settlers: WeakKeyDictionary[Any, list[Settler]] = WeakKeyDictionary()


def settler_of(who: Any) -> Settler | None:
    """The settler of the worker that has made the request *who*, or of the one that runs the app
    *who* in this process, the last if there are several; None outside of a worker."""
    bound: Settler | None = getattr(type(who), "_resilience_settler", None)
    if bound is not None:
        return bound if bound.settings.enabled else None
    running = _settlers.get(getattr(who, "_app", who))
    return running[-1] if running else None


class Settler:
    """Settles every message of one worker."""

    def __init__(self, consumer: Any, settings: Settings) -> None:
        self.settings = settings
        self.pending = PendingSettlements(consumer)
        self.outcomes = Outcomes(consumer.app, settings)
        self._app = consumer.app
        self._request_classes: dict[type, type] = {}

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
            attributes = {
                "__module__": kind.__module__,
                "_resilience_settler": self,
                "_listeners": self.outcomes.listeners,
            }
            self._request_classes[kind] = type(kind.__name__, (kind,), attributes)
        return self._request_classes[kind]

    def end(self) -> None:
        """The worker has ended: what could not be settled is its broker's again, or lost."""
        for settlement in self.pending.close():
            delivery = settlement.delivery
            if delivery.acked_early or delivery.no_ack:
                why = "acks_late=False" if delivery.acked_early else "its queue is no_ack"
                logger.critical(
                    "%s: LOST: settlement failed, and it was acknowledged before it ran (%s)",
                    delivery.subject, why,
                )  # fmt: skip
                self.outcomes.tell(OutcomeKind.LOST, delivery, why=f"not settled ({why})")
            else:
                unless = ", unless it was deleted with its queue" if delivery.volatile else ""
                logger.error(
                    "%s: settlement failed; its broker will deliver it again%s",
                    delivery.subject, unless,
                )  # fmt: skip
                self.outcomes.tell(OutcomeKind.REQUEUED, delivery, why="not settled")
        running = _settlers.get(self._app, [])
        if self in running:
            running.remove(self)

    # What is settled; none of these raises

    def settle(self, delivery: Delivery, result: AttemptResult, *, lost: bool = False) -> None:
        """Carry out what was decided about the attempt with that *result*; *lost* tells that the
        process that ran it died."""
        decision = result.decision
        failed = FailedAttempt(result, _history_after(delivery, result, lost))
        match decision:
            case Drop():
                logger.info("%s: dropped: %s", delivery.subject, decision.why)
                kind = _KINDS_OF_DROPS.get(decision.counted_as, OutcomeKind.DROPPED)
                self.end_as(kind, delivery, failed, decision.why)
            case GiveUp():
                self.bury(delivery, decision.reason, decision.rule, failed)
            case RetryLater():
                self._retry(delivery, failed, decision)

    def _retry(self, delivery: Delivery, failed: FailedAttempt, decision: RetryLater) -> None:
        envelope, (result, history) = delivery.envelope, failed
        try:
            if result.changed is not None:
                envelope = result.changed.apply(envelope)
            copy = _again(envelope, history, decision)
        except Exception as exc:
            rule = "no retry can be made of this message"
            logger.exception("%s: %s", delivery.subject, rule)
            given_up = GiveUp(Reason.INVALID, rule)
            result = replace(result, error=ErrorRecord.of(exc), decision=given_up)
            self.bury(delivery, Reason.INVALID, rule, FailedAttempt(result, history))
            return
        logger.info(
            "%s: attempt %d ended (%s, %s): again in %.3f s",
            delivery.subject, history.count, result.error.error, decision.rule, decision.delay,
        )  # fmt: skip
        self.schedule(delivery, copy, decision.delay, failed)

    def end_as(
        self, kind: OutcomeKind, delivery: Delivery, failed: FailedAttempt | None = None,
        why: str = "",
    ) -> None:  # fmt: skip
        """Acknowledge *delivery*, of which nothing is to be written: it has ended as *kind*."""
        delivery.ack()
        self.outcomes.tell(kind, delivery, failed, why=why)

    def schedule(
        self, delivery: Delivery, copy: Envelope, delay: float, failed: FailedAttempt | None = None
    ) -> None:
        """Let *copy* be delivered in *delay* seconds in place of *delivery*: for the next attempt
        after the one that *failed*, or, without one, back to its queue."""

        def begin(done: Done) -> None:
            self.pending.broker.schedule(delivery, copy, delay, done)

        def ended(result: Result, tries: int) -> bool:
            match result:
                case Result.DONE:
                    self.outcomes.tell(_kind_of_retry(failed), delivery, failed, delay=delay)
                case Result.NOT_OURS:
                    self.outcomes.tell(OutcomeKind.NOT_OURS, delivery, failed)
                case Result.UNROUTABLE:
                    rule = f"its queue {delivery.envelope.queue} has gone"
                    self.bury(delivery, Reason.UNROUTABLE, rule, _unseen(failed))
                case Result.TOO_LARGE:
                    rule = "its headers leave no room for a retry's"
                    self.bury(delivery, Reason.INVALID, rule, _unseen(failed))
            return result is not Result.FAILED

        self.pending.start(Settlement(delivery, begin, ended))

    def bury(
        self, delivery: Delivery, reason: Reason, rule: str = "",
        failed: FailedAttempt | None = None, error: BaseException | None = None,
    ) -> None:  # fmt: skip
        """Make a dead letter of *delivery*: after the attempt that *failed*, or for the *error*
        that it is for this worker. It goes into the queue that the policy's rule names, else the
        task, else the settings."""
        result, history = failed or (None, History.loads(delivery.envelope.headers.get(HEADER)))
        letter = self._letter(delivery, reason, rule, history, result, error)
        decision = result and result.decision
        own = decision.queue if isinstance(decision, GiveUp) else None
        queue = self.settings.queue_for(delivery.envelope.queue, own, delivery.task_queue)
        arguments = self.settings.dead_letter_queue_arguments
        if result is not None:
            error = result.exception

        def log(level: int, where: str) -> None:
            logger_of_letters(result is not None and result.seen).log(
                level,
                "%s: dead letter %s %s %s: %s, attempts: %d (%s, %s)",
                delivery.subject, letter.id, where, queue, reason, history.count,
                letter.error.error or "no error", rule or letter.verdict_rule or "no rule",
                exc_info=error if level == logging.ERROR else None,
            )  # fmt: skip

        def write(copy: Envelope, *, packed: bool = False) -> None:
            def begin(done: Done) -> None:
                self.pending.broker.dead_letter(delivery, copy, queue, arguments, done)

            def ended(result: Result, tries: int) -> bool:
                match result:
                    case Result.DONE:
                        log(logging.ERROR, "in")
                        kind = OutcomeKind.DEAD_LETTERED
                        self.outcomes.tell(kind, delivery, failed, letter=letter)
                    case Result.NOT_OURS:
                        self.outcomes.tell(OutcomeKind.NOT_OURS, delivery, failed)
                    case Result.TOO_LARGE if not packed:
                        write(letter.to_envelope(packed=True), packed=True)
                    case _:
                        if tries == 1:
                            log(logging.WARNING, "pending for")
                        return False
                return True

            self.pending.start(Settlement(delivery, begin, ended, is_letter=True))

        write(letter.to_envelope())

    def _letter(
        self, delivery: Delivery, reason: Reason, rule: str, history: History,
        result: AttemptResult | None, error: BaseException | None,
    ) -> DeadLetter:  # fmt: skip
        facts: dict[str, Any] = {}
        if result is not None:
            verdict = result.verdict
            facts = {
                "error": result.error, "kind": verdict.kind.value, "verdict_rule": verdict.rule,
                "category": verdict.category, "hint": verdict.hint,
            }  # fmt: skip
        elif error is not None:
            facts = {"error": ErrorRecord.of(error)}
        return DeadLetter.write(
            reason, delivery.envelope, history=history, rule=rule, worker=delivery.worker,
            app_version=self.settings.app_version, **facts,
        )  # fmt: skip


#: What a retry is that the body, or its policy, has asked for in another word; by its verdict.
_KINDS_OF_RETRIES = {"protocol.Snooze": OutcomeKind.SNOOZED, "Reject": OutcomeKind.REQUEUED}
#: What has ended, and is not dropped: by what it is counted as.
_KINDS_OF_DROPS = {
    "retried": OutcomeKind.RETRY_SCHEDULED,
    "results_not_stored": OutcomeKind.SUCCEEDED,
}


def _kind_of_retry(failed: FailedAttempt | None) -> OutcomeKind:
    if failed is None:
        return OutcomeKind.REQUEUED
    return _KINDS_OF_RETRIES.get(failed.result.verdict.rule, OutcomeKind.RETRY_SCHEDULED)


def _unseen(failed: FailedAttempt | None) -> FailedAttempt | None:
    """The same, of which error trackers have not heard: until now it was to be retried."""
    if failed is None:
        return None
    result = replace(failed.result, seen=False, exception=None)
    return FailedAttempt(result, failed.history)


def _history_after(delivery: Delivery, result: AttemptResult, lost: bool) -> History:
    """The history of the message, with the attempt that had that *result*."""
    history, decision = History.loads(delivery.envelope.headers.get(HEADER)), result.decision
    attempt = Attempt(
        number=history.count + 1,
        at=result.at,
        ran=round(result.ran, 6),
        worker=delivery.worker,
        error=result.error.error,
        message=clipped(result.error.message),
        kind=result.verdict.kind.value,
        rule=result.verdict.rule,
        delay=round(decision.delay, 6) if isinstance(decision, RetryLater) else None,
        frame=clipped(result.error.frame, 200),
    )
    history = history.add(attempt, lost=lost)
    if result.context is not None:
        history = replace(history, context=result.context)
    if result.succeeded is not None:
        history = replace(history, succeeded=result.succeeded)
    return history


def _again(envelope: Envelope, history: History, decision: RetryLater) -> Envelope:
    """The message of the next attempt: the one received, with a new count and our header."""
    if not decision.delay <= LONGEST_DELAY:
        raise ValueError(f"a retry may wait a year at most, got {decision.delay:g} s")
    retries = envelope.fields().get("retries") or 0
    if decision.counted or envelope.protocol == 1:
        envelope = envelope.with_fields(retries=retries + decision.counted)
    # Should that queue have gone when this is due, RabbitMQ keeps the message and tells nothing.
    return envelope.with_header(replace(history, queue=envelope.queue).dumps())
