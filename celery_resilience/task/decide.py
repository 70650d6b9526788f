"""What is to become of a failed attempt: the facts are gathered, the policy is asked.

The same question is asked in two places: where the body ran, about what it raised, and in the
worker's main process, about a body that could not tell because its process died.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.exceptions import Retry

from celery_resilience.classify import classify, is_control_flow
from celery_resilience.classify.foreign import log_raised
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import BodyExited
from celery_resilience.messages.context import RetryContext
from celery_resilience.messages.envelope import seconds_until
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History, Succeeded
from celery_resilience.policy.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.continuation import body_returned, unpublished, warn_of_unstored
from celery_resilience.task.requested_retry import (
    asked_by_raising,
    is_sent,
    make_retry,
)

__all__ = [
    "GONE_ON",
    "Running",
    "classify_and_decide",
    "failure_of",
    "running",
    "what_is_left",
    "what_was_asked",
]

logger = logging.getLogger("celery_resilience")

#: Not the module's own generator: children of one fork would draw the same numbers.
_random = random.SystemRandom()


class Running:
    """The attempt that is under way in this thread or greenlet."""

    # Every task makes one: what is None until something fails is the class's.

    #: Its body is being run: what is called now is called by the body.
    inside = False
    #: What was decided about it.
    outcome: AttemptResult | None = None
    #: What its body has ended in, once that is decided: the decision is about this exception.
    stands: BaseException | None = None
    #: Celery is being told, or has been: what was decided stands whatever is raised from now on.
    told = False
    #: Celery's Context of it, once that is so.
    req: Any = None
    #: A retry that the body asked for and that has not been published.
    asked: RetryLater | None = None
    #: Publishes it Celery's way, for a body that caught the Retry and went on.
    publish: Callable[[], Any] | None = None
    #: ``self.retry`` has published a message of its own, Celery's way.
    published: bool = False
    #: What ``self.retry`` raised because its retries were used up.
    exhausted: BaseException | None = None

    #: What the body has asked for and may have changed; None if it has not.
    context: RetryContext | None = None
    #: Reads the context that is kept under the task's ``context_key``; None without one.
    stored: Callable[[], tuple[dict[str, Any], ...]] | None = None
    #: The id of the task whose context that is.
    task_id: str | None = None
    #: What lies behind a new message of that task, in which this attempt is to go on.
    following: History | None = None

    def __init__(self, at: float, task: Any) -> None:
        #: When it began, in seconds since the epoch.
        self.at = at
        self.task = task

    def history_of(self, req: Any) -> History:
        """The attempts before this one, by the message that *req* was made of."""
        return History.loads(header(req))

    def decide(self, req: Any, exc: BaseException) -> AttemptResult | None:
        """What is to become of it, as it has ended in *exc*; None: Celery's own affair."""
        return _rule_on(self.task, req, exc, self)

    def again(self, exc: BaseException, decision: RetryLater) -> Any:
        """The Retry that stands for *exc*, which somebody else settles as *decision* says."""
        return make_retry(exc, decision.delay)

    def forget(self) -> None:
        """Let go of exceptions, in whose frames it is itself."""
        self.stands = self.exhausted = self.req = None

    def context_levels(self) -> tuple[dict[str, Any], ...] | None:
        """What the context holds by now; None if the body left it alone, or it can't be kept."""
        try:
            return None if self.context is None else tuple(self.context.levels())
        except (TypeError, ValueError):
            logger.exception("%s: its context stays what it was before", self.task_id)
            return None


#: The attempt under way; None outside of a worker.
running: ContextVar[Running | None] = ContextVar("running", default=None)


def _rule_on(task: Any, req: Any, exc: BaseException, attempt: Running) -> AttemptResult | None:
    """What is to become of the attempt that ended in *exc*; None: Celery's own affair."""
    if isinstance(exc, Retry):
        if attempt.asked is not None:
            return what_was_asked(attempt, exc.exc or exc, attempt.asked)
        if attempt.published or is_sent(exc):
            return None
        cause = exc.exc or exc
        asked = asked_by_raising(task, req, exc)
        if asked is not None:
            return what_was_asked(attempt, cause, asked)
        given_up = GiveUp(Reason.EXHAUSTED, rule="a Retry that it raised, past its limit")
        return _outcome(attempt, cause, given_up, classify(cause))
    if is_control_flow(exc):
        return None
    if attempt.asked is not None:  # it caught the Retry that it had asked for, and raised another
        return what_was_asked(attempt, exc, attempt.asked)
    if attempt.published:
        return _outcome(attempt, exc, GONE_ON, classify(exc))
    if body_returned(exc):
        rest = unpublished(exc, req)
        if rest is not None:
            return what_is_left(attempt, exc, rest)
        warn_of_unstored(task, req, exc)
        done = Drop("its body succeeded", "its result could not be stored", "results_not_stored")
        return _outcome(attempt, exc, done, classify(exc))
    if exc is attempt.exhausted:
        given_up = GiveUp(Reason.EXHAUSTED, rule="self.retry, past its limit")
        return _outcome(attempt, exc, given_up, classify(exc))
    history = attempt.history_of(req)
    retries: int = req.retries or 0
    try:
        verdict, decision = classify_and_decide(
            task, exc, history, retries=retries, began=attempt.at, expires=req.expires
        )
    except Exception as problem:
        log_raised(logger, problem, "%s[%s]: its policy raised", task.name, req.id)
        verdict, decision = classify(exc), GiveUp(Reason.PERMANENT, rule="its policy raised")
    return _outcome(attempt, exc, decision, verdict)


def classify_and_decide(
    task: Any,
    exc: BaseException,
    history: History,
    *,
    retries: int,
    began: float,
    expires: Any = None,
    reason: Reason | None = None,
    in_child: bool = True,
) -> tuple[Verdict, Decision]:
    """Ask *task*'s policy what the attempt that *began* then and ended in *exc* deserves."""
    failure = failure_of(
        task, exc, history, retries=retries, began=began, expires=expires, reason=reason
    )
    decision = task.policy_in_force.decide(failure, _random, call_user_code=in_child)
    return failure.verdict, decision


def classify_and_decide_put_back(
    task: Any, exc: BaseException, history: History, *, began: float, expires: Any
) -> tuple[Verdict, Decision]:
    """What is to become of a message that *task* has put back, by ``Reject(requeue=True)``."""
    failure = failure_of(
        task, exc, history, retries=0, began=began, expires=expires, reason=Reason.REJECTED
    )
    verdict = Verdict(Kind.UNKNOWN, "Reject", "code", "the task put its message back")
    failure = replace(failure, verdict=verdict)
    return verdict, task.policy_in_force.put_back(failure, _random)


def failure_of(
    task: Any,
    exc: BaseException,
    history: History,
    *,
    retries: int,
    began: float,
    expires: Any = None,
    reason: Reason | None = None,
) -> Failure:
    """The facts of the attempt that *began* then and ended in *exc*."""
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
        retries=retries,
        age=max(0.0, now - (began if history.first is None else history.first)),
        expires_in=seconds_until(expires, now, task.app.timezone),
        reason=reason,
    )


def header(req: Any) -> Any:
    """The text of our header, wherever the message's protocol has put it."""
    text = getattr(req, HEADER, None)
    return text if text is not None else (req.headers or {}).get(HEADER)


def _outcome(
    attempt: Running, exc: BaseException, decision: Decision, verdict: Verdict
) -> AttemptResult:
    return AttemptResult(
        decision=decision,
        verdict=verdict,
        error=ErrorRecord.of(exc, with_traceback=not isinstance(decision, RetryLater)),
        at=attempt.at,
        ran=max(0.0, time.time() - attempt.at),
        context=attempt.context_levels(),
        seen=attempt.inside,
    )


GONE_ON = Drop("it goes on in the message that self.retry published", "self.retry", "retried")

_OWN_WORDS = Verdict(Kind.UNKNOWN, "self.retry", "code", "the task asked for a retry")


def what_is_left(attempt: Running, exc: BaseException, rest: Succeeded) -> AttemptResult:
    """The outcome of an attempt whose body succeeded, but not the publishing of what follows."""
    given_up = GiveUp(Reason.CHAIN, rule="what was to follow could not be published")
    return replace(_outcome(attempt, exc, given_up, classify(exc)), succeeded=rest)


def what_was_asked(attempt: Running, exc: BaseException, asked: RetryLater) -> AttemptResult:
    """The outcome of an attempt whose body has *asked* for a retry."""
    return _outcome(attempt, exc, asked, _OWN_WORDS)
