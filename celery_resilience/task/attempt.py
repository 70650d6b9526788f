"""One attempt at a task: while it runs, and what the child says of one that failed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from celery_resilience.classify.verdict import Verdict
from celery_resilience.messages.changed import Changed
from celery_resilience.messages.context import RetryContext
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import header_in
from celery_resilience.messages.history import History, Succeeded
from celery_resilience.policy.decision import Decision, RetryLater

__all__ = ["AttemptResult", "CurrentAttempt", "current_attempt"]

logger = logging.getLogger("celery_resilience")


@dataclass(frozen=True)
class AttemptResult:
    """One failed attempt and what was decided about it; text and numbers only, so it pickles."""

    decision: Decision
    verdict: Verdict
    error: ErrorRecord
    #: When the attempt began, in seconds since the epoch, and how long it ran.
    at: float
    ran: float
    #: The attempt's context, as `RetryContext.levels` has it; None if the body left it alone.
    context: tuple[dict[str, Any], ...] | None = None
    #: The body has succeeded; this is left to be done.
    succeeded: Succeeded | None = None
    #: What the body has changed of its own message; None: nothing.
    changed: Changed | None = None
    #: The child could not store that it has failed.
    untold: bool = False
    #: The exception has left the body: what wraps that has seen it.
    seen: bool = False
    #: The exception itself, where the main process decides: it can't cross from a child.
    exception: BaseException | None = None


class CurrentAttempt:
    """The attempt that runs in this thread or greenlet."""

    # Every task makes one: what is None until something fails is the class's.

    #: One of ``apply``, in its caller's own thread.
    eager = False
    #: Its body is being run: what is called now is called by the body.
    inside = False
    #: An earlier life of the message has run the body: only this is left to be done.
    rest: Succeeded | None = None

    #: What was decided about it; None: nothing, or that it is Celery's own affair.
    decided: AttemptResult | None = None
    #: What is raised in the place of what it has ended in, once that is decided.
    raised: BaseException | None = None
    #: Celery is being told, or has been: what was decided stands whatever is raised from now on.
    told = False
    #: Celery's Context of it, once that is so.
    req: Any = None
    #: Celery could not store what was decided: the parent does it.
    untold = False

    #: A retry that the body asked for and that has not been published.
    requested: RetryLater | None = None
    #: Publishes it Celery's way, for a body that caught the Retry and went on.
    publish: Callable[[], Any] | None = None
    #: ``self.retry`` has published a message of its own, Celery's way.
    published = False
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

    def end(self, decided: AttemptResult | None, raised: BaseException | None) -> None:
        """It has ended so; what was *decided* before is no longer true."""
        self.decided, self.raised = decided, raised

    def history_of(self, req: Any) -> History:
        """The attempts before this one, by the message that *req* was made of."""
        return History.loads(header_in(vars(req)))

    def eager_retry(self, decision: RetryLater) -> Any:
        """What Celery's ``apply`` is to go on with; None where the worker retries."""
        return None

    def forget(self) -> None:
        """Drop exceptions, in whose frames it is itself."""
        self.raised = self.exhausted = self.req = None

    def context_levels(self) -> tuple[dict[str, Any], ...] | None:
        """What the context holds by now; None if the body left it alone, or it can't be kept."""
        try:
            return None if self.context is None else tuple(self.context.levels())
        except (TypeError, ValueError):
            logger.exception("%s: its context stays what it was before", self.task_id)
            return None


#: The current attempt; None outside of a worker.
current_attempt: ContextVar[CurrentAttempt | None] = ContextVar("current_attempt", default=None)
