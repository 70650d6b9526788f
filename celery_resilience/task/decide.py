"""What is to become of a failed attempt: the failure goes in, a decision comes out.

The same question is asked in two places: where the body ran, about what it raised, and in the
worker's main process, about a body that could not tell because its process died. Nothing is
changed here: :mod:`~celery_resilience.task.trace` tells Celery, and the parent settles.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.exceptions import Retry

from celery_resilience.classify import classify, is_control_flow
from celery_resilience.classify.foreign import log_raised
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import BodyExited
from celery_resilience.messages.envelope import seconds_until
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.history import History, Succeeded
from celery_resilience.policy.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.policy.policy import Policy
from celery_resilience.task.attempt import AttemptResult, CurrentAttempt
from celery_resilience.task.continuation import after_body, warn_of_unstored
from celery_resilience.task.requested_retry import is_sent, requested_by_raising

__all__ = [
    "GONE_ON",
    "decide",
    "decide_failure",
    "decide_rejection",
    "decide_request",
    "failure_of",
]

logger = logging.getLogger("celery_resilience")

#: Not the module's own generator: children of one fork would draw the same numbers.
_random = random.SystemRandom()

GONE_ON = Drop("it goes on in the message that self.retry published", "self.retry", "retried")

_OWN_WORDS = Verdict(Kind.UNKNOWN, "self.retry", "code", "the task asked for a retry")


def decide(attempt: CurrentAttempt, req: Any, exc: BaseException) -> AttemptResult | None:
    """What is to become of *attempt*, which has ended in *exc*; None: Celery's own affair."""
    if attempt.rest is not None:
        return _not_continued(attempt, exc, attempt.rest)
    if is_control_flow(exc) and (attempt.eager or not isinstance(exc, Retry)):
        return None
    result = _decide(attempt, req, exc)
    # Eagerly nothing is left behind, so a failure that is dropped is one like any other.
    is_dropped = result is not None and isinstance(result.decision, Drop)
    return None if attempt.eager and is_dropped else result


def _decide(attempt: CurrentAttempt, req: Any, exc: BaseException) -> AttemptResult | None:
    if attempt.requested is not None:  # it may have caught that Retry, and raised another error
        cause = exc.exc or exc if isinstance(exc, Retry) else exc
        return decide_request(attempt, attempt.requested, cause)
    if isinstance(exc, Retry):
        return _decide_retry(attempt, req, exc)
    if attempt.published:
        return _result(attempt, exc, GONE_ON)
    if (after := after_body(exc)) is not None:
        rest = after.unpublished(req)
        if rest is not None:
            return _not_continued(attempt, exc, rest)
        warn_of_unstored(attempt.task, req, exc, after.retval)
        done = Drop("its body succeeded", "its result could not be stored", "results_not_stored")
        return _result(attempt, exc, done)
    if exc is attempt.exhausted:
        return _result(attempt, exc, GiveUp(Reason.EXHAUSTED, rule="self.retry, past its limit"))
    return _decide_by_policy(attempt, req, exc)


def decide_request(
    attempt: CurrentAttempt, requested: RetryLater, cause: BaseException
) -> AttemptResult:
    """What becomes of *attempt*, whose body has *requested* a retry because of *cause*."""
    return _result(attempt, cause, requested, _OWN_WORDS)


def _decide_retry(attempt: CurrentAttempt, req: Any, retry: Any) -> AttemptResult | None:
    if attempt.published or is_sent(retry):
        return None
    cause = retry.exc or retry
    requested = requested_by_raising(attempt.task, req, retry)
    if requested is not None:
        return decide_request(attempt, requested, cause)
    used_up = GiveUp(Reason.EXHAUSTED, rule="a Retry that it raised, past its limit")
    return _result(attempt, cause, used_up)


def _decide_by_policy(attempt: CurrentAttempt, req: Any, exc: BaseException) -> AttemptResult:
    task = attempt.task
    try:
        failure = failure_of(
            task, exc, attempt.history_of(req), attempt.at, retries=req.retries, expires=req.expires
        )
        decision = decide_failure(task, failure)
    except Exception as problem:
        log_raised(logger, problem, "%s[%s]: its policy raised", task.name, req.id)
        return _result(attempt, exc, GiveUp(Reason.PERMANENT, rule="its policy raised"))
    return _result(attempt, exc, decision, failure.verdict)


def _not_continued(attempt: CurrentAttempt, exc: BaseException, rest: Succeeded) -> AttemptResult:
    """The body has succeeded, but not the publishing of what follows, the *rest*."""
    given_up = GiveUp(Reason.CHAIN, rule="what was to follow could not be published")
    return replace(_result(attempt, exc, given_up), succeeded=rest)


def decide_failure(task: Any, failure: Failure, *, in_child: bool = True) -> Decision:
    """What *task*'s policy decides about *failure*; its functions are called *in_child* only."""
    policy: Policy = task.policy_in_force
    return policy.decide(failure, _random, call_user_code=in_child)


def decide_rejection(task: Any, failure: Failure) -> tuple[Verdict, Decision]:
    """The decision about a message that *task* has requeued, by ``Reject(requeue=True)``."""
    verdict = Verdict(Kind.UNKNOWN, "Reject", "code", "the task put its message back")
    return verdict, task.policy_in_force.decide_requeue(replace(failure, verdict=verdict), _random)


def failure_of(
    task: Any, exc: BaseException, history: History, began: float, *,
    retries: int | None = 0, expires: Any = None, reason: Reason | None = None,
) -> Failure:  # fmt: skip
    """The attempt that *began* then and ended in *exc*, classified."""
    now = time.time()
    subject = exc.__cause__ if isinstance(exc, BodyExited) and exc.__cause__ else exc
    if task.throws and isinstance(exc, tuple(task.throws)):
        verdict = Verdict(Kind.EXPECTED, "throws", "code", f"{task.name} lists it in throws")
    else:
        verdict = classify(subject)
    if reason is None and isinstance(exc, (SoftTimeLimitExceeded, TimeLimitExceeded)):
        reason = Reason.TIME_LIMIT
    return Failure(
        exception=exc,
        verdict=verdict,
        task=task.name,
        attempt=history.count + 1,
        retries=retries or 0,
        age=max(0.0, now - (began if history.first is None else history.first)),
        expires_in=seconds_until(expires, now, task.app.timezone),
        reason=reason,
    )


def _result(
    attempt: CurrentAttempt, exc: BaseException, decision: Decision, verdict: Verdict | None = None
) -> AttemptResult:
    return AttemptResult(
        decision=decision,
        verdict=classify(exc) if verdict is None else verdict,
        error=ErrorRecord.of(exc, with_traceback=not isinstance(decision, RetryLater)),
        at=attempt.at,
        ran=max(0.0, time.time() - attempt.at),
        context=attempt.context_levels(),
        seen=attempt.inside,
    )
