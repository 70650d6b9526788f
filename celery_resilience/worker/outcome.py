"""The one place that says how a delivery ended: its Outcome, after the settlement.

Counters and listeners are fed from it. A success costs a check of the list of listeners.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NamedTuple

from celery.exceptions import Ignore, Reject, Retry

from celery_resilience.brokers.base import Delivery
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER, header_in
from celery_resilience.messages.history import History
from celery_resilience.messages.outcome import Outcome, OutcomeKind
from celery_resilience.messages.redact import Redactor
from celery_resilience.policy.decision import Drop, RetryLater
from celery_resilience.settings import Settings
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.worker.source_queue import queue_of

__all__ = ["KILLED", "FailedAttempt", "Outcomes", "telling"]

logger = logging.getLogger("celery_resilience")

#: As what attempts are counted that have not succeeded, for ``celery inspect stats``.
_COUNTED = ("retried", "dead_letters", "dropped", "results_not_stored")
_LATER = (OutcomeKind.RETRY_SCHEDULED, OutcomeKind.SNOOZED, OutcomeKind.REQUEUED)
#: What Celery's ``self.replace`` raises when the successor is published.
_REPLACED = "Replaced by new task"
#: Why what runs in a cold shutdown has ended.
KILLED = "killed by the worker's shutdown"


class FailedAttempt(NamedTuple):
    """An attempt that failed, and the history that ends with it."""

    result: AttemptResult
    history: History


class Outcomes:
    """Makes the outcomes of one worker's deliveries, and tells them to listeners."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._app_version = settings.app_version
        self._redactor = Redactor.of(settings)
        #: What was decided since the worker's start.
        self.counts = Counter(dict.fromkeys(_COUNTED, 0))
        #: Called with each outcome, in the thread that settles.
        self.listeners: list[Callable[[Outcome], None]] = []

    def tell(
        self, kind: OutcomeKind, delivery: Delivery, failed: FailedAttempt | None = None,
        letter: DeadLetter | None = None, **facts: Any,
    ) -> None:  # fmt: skip
        """*delivery* has ended as *kind*: after the attempt that *failed*, where there was one,
        and in a *letter*, where it is one; *facts* are other fields of the outcome. Raises
        nothing."""
        self._count(kind, failed and failed.result.decision)
        self._tell(kind, delivery, failed, letter, **facts)

    def succeeded(self, request: Any, why: str = "") -> None:
        """The body of *request* has succeeded, and its message is acknowledged."""
        fields = request._request_dict
        history = History.loads(header_in(fields))
        now, began = time.time(), request.time_start or None
        self._hand_on(
            Outcome(
                OutcomeKind.RECOVERED if history.count else OutcomeKind.SUCCEEDED,
                request.name,
                request.id,
                queue_of(request._message, request._app),
                life=len(history.lineage) + 1,
                attempt=history.count + 1,
                retries=fields.get("retries") or 0,
                worker=request._hostname,
                app_version=self._app_version,
                at=began,
                duration=began and max(0.0, now - began),
                elapsed=began and max(0.0, now - (history.first or began)),
                why=why,
                replay=history.lineage[-1] if history.lineage else "",
            )
        )

    # What Celery itself has carried out: it is told, and not counted

    def of_celerys_own(self, request: Any, delivery: Delivery, exc: BaseException) -> None:
        """Celery has carried out what the body of *request* has told it with *exc*."""
        if isinstance(exc, Reject) or request._already_revoked:
            return  # it has been told
        if isinstance(exc, Ignore) and str(exc).startswith(_REPLACED):
            self.succeeded(request, "replaced")
        elif isinstance(exc, Ignore):
            self._tell(OutcomeKind.DROPPED, delivery, why="ignored")
        elif isinstance(exc, Retry):
            self._tell(OutcomeKind.RETRY_SCHEDULED, delivery, why="published by self.retry")
        elif delivery.acked_early:  # others are told when they are back in their queues
            self._tell(OutcomeKind.LOST, delivery, why=KILLED)

    def rejected(self, delivery: Delivery, requeue: bool) -> None:
        """The broker has *delivery* again, or has moved it to the dead-letter exchange of its
        queue."""
        if requeue:
            self._tell(OutcomeKind.REQUEUED, delivery, why="rejected")
        else:
            why = "rejected to the dead-letter exchange of its queue"
            self._tell(OutcomeKind.DROPPED, delivery, why=why)

    def _count(self, kind: OutcomeKind, decision: Any) -> None:
        if kind is OutcomeKind.DEAD_LETTERED:
            self.counts["dead_letters"] += 1
        elif isinstance(decision, Drop):
            self.counts[decision.counted_as] += 1
        elif kind is OutcomeKind.DROPPED:
            self.counts["dropped"] += 1
        elif kind in _LATER and isinstance(decision, RetryLater):
            self.counts["retried"] += 1

    def _tell(
        self, kind: OutcomeKind, delivery: Delivery, failed: FailedAttempt | None = None,
        letter: DeadLetter | None = None, **facts: Any,
    ) -> None:  # fmt: skip
        if not self.listeners:
            return
        envelope, now = delivery.envelope, time.time()
        result, history = failed or (None, History.loads(envelope.headers.get(HEADER)))
        if result is not None:
            facts |= {
                "attempt": history.count,
                "at": result.at,
                "duration": result.ran,
                "elapsed": max(0.0, now - (history.first or result.at)),
                "error": self._redactor.error(result.error),
                "verdict": result.verdict,
                "decision": result.decision,
                "policy": self._policy_of(envelope.text_field("task")),
                "rule": self._redactor(result.decision.rule),
            }
        if letter is not None:
            facts |= {
                "error": self._redactor.error(letter.error),
                "rule": self._redactor(letter.rule),
                "reason": letter.reason,
                "letter_id": letter.id,
                "fingerprint": letter.fingerprint,
                "cause": letter.group,
            }
        if "delay" in facts:
            facts["due_at"] = now + facts["delay"]
        self._hand_on(
            Outcome(
                kind,
                envelope.text_field("task"),
                envelope.text_field("id"),
                envelope.queue,
                life=len(history.lineage) + 1,
                retries=_retries_of(envelope),
                worker=delivery.worker,
                app_version=self._app_version,
                replay=history.lineage[-1] if history.lineage else "",
                **facts,
            )
        )

    def _policy_of(self, task: str) -> str:
        with suppress(Exception):  # it names one that does not exist
            return self._app.tasks[task].policy_in_force.name or ""
        return ""

    def _hand_on(self, outcome: Outcome) -> None:
        for listener in [*self.listeners]:
            try:
                listener(outcome)
            except Exception:
                logger.exception("%s[%s]: a listener raised", outcome.task, outcome.task_id)


def _retries_of(envelope: Envelope) -> int:
    try:
        retries = envelope.fields().get("retries")
    except Exception:  # it can't be read
        return 0
    return retries if isinstance(retries, int) else 0


def telling(succeed: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's ``on_success`` of a class of requests, which also tells the outcome.

    Celery calls it after the body of each task, early-acked ones included, and for failures too;
    on gevent also for a body that a cold shutdown has killed.
    """

    @wraps(succeed)
    def on_success(self: Any, told: Any, **options: Any) -> Any:
        # Called with keywords it would cost twice as much.
        answer = succeed(self, told, **options) if options else succeed(self, told)
        if self._listeners and not (told[0] or self._settled or self._already_cancelled):
            self._resilience_settler.outcomes.succeeded(self)
        return answer

    return on_success
