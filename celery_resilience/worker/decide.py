"""Deciding in the worker's main process: about a body that could not tell how it ended.

Its process died, or ran into its hard time limit, or the body put its message back. The policy is
the same that the child would have asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from typing import Any

from billiard.exceptions import Terminated, WorkerLostError
from celery import VERSION
from celery import exceptions as _exceptions
from celery.worker import state

from celery_resilience.classify import classify, is_control_flow
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import header_in
from celery_resilience.messages.history import History
from celery_resilience.policy.decision import GiveUp, Reason, RetryLater
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.decide import decide_failure, decide_rejection, failure_of
from celery_resilience.worker.result_store import ask_for_success, store_outcome
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.shutdown import ended_with_worker, remember_killed

__all__ = [
    "Report",
    "came_before",
    "decide_aside",
    "decide_lost_attempt",
    "decide_requeue",
    "is_lost",
    "text",
]

logger = logging.getLogger("celery_resilience")

#: Celery 5.7 calls a task that rejects its message failed; the ones before leave it pending.
_REJECTION_FAILS = VERSION >= (5, 7)

# The stubs describe what tasks use of it, not what makes it.
Retry: Any = _exceptions.Retry


def decide_aside(
    request: Any, exc: BaseException, exc_info: Any, settler: Settler,
    fail: Callable[[AttemptResult], None],
) -> None:  # fmt: skip
    """What becomes of *request*, whose body could not tell that it ended in *exc*: *fail* gets it,
    unless the body has succeeded or goes back to the broker. The result store is asked and told
    aside: it may not answer, and the loop must go on."""
    aside = settler.pending.aside

    def decide(stored: bool | None) -> None:
        if stored or (not request.acknowledged and ended_with_worker(exc, settler)):
            why = "died, its success is stored" if stored else "ended with the worker"
            logger.info("%s[%s]: its process %s", request.name, request.id, why)
            request._settled = False
            state.task_ready(request, successful=bool(stored))
            if stored:
                request.acknowledge()
                settler.outcomes.succeeded(request, "stored before its process died")
            else:
                remember_killed(request, settler)
            return
        result = decide_lost_attempt(request, exc, settler.settings.max_worker_losses)
        store_outcome(request, aside, exc, exc_info, result, lambda stored: fail(result))

    if is_lost(exc):
        ask_for_success(request, aside, decide)
    else:
        decide(False)


def decide_lost_attempt(request: Any, exc: BaseException, most_losses: int) -> AttemptResult:
    """What becomes of *request*, whose attempt ended with *exc*; *most_losses* is
    ``max_worker_losses``. A policy that raises is a dead letter."""
    began = request.time_start or time.time()
    history = _history(request)
    error = ErrorRecord.of(exc)
    lost = is_lost(exc)
    try:
        failure = failure_of(
            request._task, exc, history, began,
            retries=request._request_dict.get("retries"), expires=text(request._expires),
            reason=Reason.WORKER_LOST if lost else None,
        )  # fmt: skip
        verdict = failure.verdict
        decision = decide_failure(request._task, failure, in_child=False)
    except Exception:
        logger.exception("%s[%s]: its policy raised", request.name, request.id)
        verdict, decision = classify(exc), GiveUp(Reason.PERMANENT, rule="its policy raised")
    if lost and isinstance(decision, RetryLater) and history.losses + 1 >= most_losses:
        decision = GiveUp(Reason.WORKER_LOST, rule=f"max_worker_losses={most_losses}")
    ran = max(0.0, time.time() - began)
    return AttemptResult(decision, verdict, error, at=began, ran=ran, exception=exc)


def decide_requeue(request: Any, exc: BaseException) -> AttemptResult:
    """``Reject(requeue=True)`` means later, and not at once and for ever."""
    began = request.time_start or time.time()
    failure = failure_of(
        request._task, exc, _history(request), began,
        expires=text(request._expires), reason=Reason.REJECTED,
    )  # fmt: skip
    verdict, decision = decide_rejection(request._task, failure)
    error = ErrorRecord.of(exc)
    return AttemptResult(decision, verdict, error, at=began, ran=max(0.0, time.time() - began))


class Report(Enum):
    """What the worker's main process hears of an attempt that did not succeed."""

    SETTLED = "its message is settled already"
    REQUEUED = "the body put its message back"
    REJECTED = "the body rejected its message, and this Celery calls that a failure"
    CELERYS_OWN = "something that Celery itself carries out"
    UNDECIDED = "the body could not tell how it ended"
    DECIDED = "its policy has decided where the body ran"

    @classmethod
    def of(
        cls, exc: BaseException, *, decided: bool, settles: bool, settled: bool, terminating: bool
    ) -> Report:
        """What it is that the attempt ended with *exc*: *decided* where its body ran, in a worker
        that *settles*, and that is *terminating*: its children are killed."""
        if settled:
            return cls.SETTLED
        if settles and isinstance(exc, _exceptions.Reject) and not terminating:
            if getattr(exc, "requeue", False):
                return cls.REQUEUED
            if _REJECTION_FAILS:
                return cls.REJECTED
        if settles and decided:
            return cls.DECIDED
        # In a cold shutdown what the children held goes back to the broker.
        killed = terminating and (is_lost(exc) or isinstance(exc, Terminated))
        tells_celery = is_control_flow(exc) or isinstance(exc, (_exceptions.Reject, Retry))
        return cls.UNDECIDED if settles and not killed and not tells_celery else cls.CELERYS_OWN


def is_lost(exc: BaseException) -> bool:
    """Whether the process died in which the body ran."""
    # billiard 4.3 reports the exit of a child before it reports the child as lost.
    return isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt))


def came_before(request: Any) -> bool:
    """Whether this attempt's body shall find itself ``redelivered``, as on stock Celery: its
    last one put the message back, or its worker died. The copy that we made bears no mark."""
    told = header_in(request._request_dict)
    if not isinstance(told, str) or not ('.Reject"' in told or '"starts"' in told):
        return False
    history = History.loads(told)
    requeued = history.attempts and history.attempts[-1].error.endswith(".Reject")
    return bool(history.crash_redeliveries or requeued)


def text(moment: Any) -> str | None:
    """A moment as a header has it."""
    return moment.isoformat() if isinstance(moment, datetime) else moment


def _history(request: Any) -> History:
    return History.loads(header_in(request._request_dict))
