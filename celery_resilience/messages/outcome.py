"""How one delivery of a message ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from celery_resilience.classify.verdict import Verdict
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.policy.decision import Decision, Reason

__all__ = ["Outcome", "OutcomeKind"]


class OutcomeKind(str, Enum):
    """The ways in which a delivery can end."""

    SUCCEEDED = "succeeded"  #: at its first attempt
    RECOVERED = "recovered"  #: after failed attempts
    RETRY_SCHEDULED = "retry_scheduled"
    SNOOZED = "snoozed"  #: runs again later, which is no failure
    REQUEUED = "requeued"  #: back to its queue: no failure of the task
    DEAD_LETTERED = "dead_lettered"
    DROPPED = "dropped"  #: on its owner's word: revoked, expired, discarded, ignored
    LOST = "lost"  #: acknowledged early, and killed by a shutdown of the worker
    NOT_OURS = "not_ours"  #: another worker has it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Outcome:
    """How one delivery ended; made once for each, after its settlement."""

    kind: OutcomeKind
    #: The task's name and id; empty where the message does not tell.
    task: str
    task_id: str
    queue: str
    #: Counted from 1; a replay begins the next one.
    life: int = 1
    #: This attempt, counted from 1; 0 where no body was begun.
    attempt: int = 0
    #: Counted retries before this delivery, as in Celery's ``retries`` header.
    retries: int = 0
    worker: str = ""
    app_version: str = ""
    #: When the attempt began, in seconds since the epoch; how long it ran; and how long ago the
    #: first one began, waits included: both in seconds. None where no body was begun.
    at: float | None = None
    duration: float | None = None
    elapsed: float | None = None
    #: What it ended in, without what ``resilience_redact`` and names of credentials mask.
    error: ErrorRecord | None = None
    verdict: Verdict | None = None
    decision: Decision | None = None
    #: The name of the policy in force, where it has one.
    policy: str = ""
    #: What decided, for a person: "rule 2 (Timeout)", "classifier: http.status.503".
    rule: str = ""
    #: Why it was dropped, or succeeded in an unusual way.
    why: str = ""
    #: Seconds until it runs again, and when that is, in seconds since the epoch.
    delay: float | None = None
    due_at: float | None = None
    #: Of a dead letter: its reason, its id, and what groups it by task and by cause.
    reason: Reason | None = None
    letter_id: str = ""
    fingerprint: str = ""
    cause: str = ""
    #: The letter that this message was replayed from.
    replay: str = ""
