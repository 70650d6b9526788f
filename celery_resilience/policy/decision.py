"""The facts of a failed attempt, and what can be decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Union

from celery_resilience.classify.verdict import Verdict

__all__ = ["Decision", "Drop", "Failure", "GiveUp", "Reason", "RetryLater"]


class Reason(str, Enum):
    """Why a message became a dead letter; also the metric label and the CLI filter."""

    PERMANENT = "permanent"  #: by verdict, by a rule, or because no retry was asked for
    EXHAUSTED = "exhausted"  #: every retry it was allowed has failed
    DEADLINE = "deadline"  #: the next retry would be later than ``max_elapsed`` allows
    TIME_LIMIT = "time_limit"  #: it ran into its soft or hard time limit
    WORKER_LOST = "worker_lost"  #: the process that ran it died
    UNDECODABLE = "undecodable"  #: its body or its headers can't be read
    UNREGISTERED = "unregistered"  #: this worker knows no task of that name
    INVALID = "invalid"  #: it can be read, but it is not a task message
    REJECTED = "rejected"  #: the task rejected it
    EXPIRED = "expired"  #: its ``expires`` has passed, or would before the next retry
    CHAIN = "chain"  #: the body succeeded, but what was to follow could not be published
    UNROUTABLE = "unroutable"  #: the queue it belongs to has gone
    MANUAL = "manual"  #: an operator buried it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Failure:
    """The facts of one failed attempt."""

    exception: BaseException
    verdict: Verdict
    #: The task's name.
    task: str
    #: This attempt, counted from 1, uncounted retries included.
    attempt: int
    #: Counted retries before this attempt, as in Celery's ``retries`` header.
    retries: int
    #: Seconds since the first attempt began.
    age: float
    #: Seconds until the message expires, None when it never does.
    expires_in: float | None = None
    #: What giving up is to be called where the policy's own word would hide the cause
    #: (a time limit, a lost worker); None for the policy's own word.
    reason: Reason | None = None


@dataclass(frozen=True)
class RetryLater:
    """Run the message again in *delay* seconds; *counted* retries use up one of those allowed."""

    delay: float
    counted: bool = True
    #: What decided, for a person: "rule 2 (Timeout)", "classifier: http.status.503".
    rule: str = ""


@dataclass(frozen=True)
class GiveUp:
    """Make the message a dead letter, in *queue* if the rule names one of its own."""

    reason: Reason
    rule: str = ""
    queue: str | None = None


@dataclass(frozen=True)
class Drop:
    """Ack the message on its owner's word, and count it."""

    why: str
    rule: str = ""
    #: As what it is counted.
    counted_as: str = "dropped"


Decision = Union[RetryLater, GiveUp, Drop]  # noqa: UP007
