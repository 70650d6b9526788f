"""One attempt at a task: what is recorded of it where its body ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_resilience.classify.verdict import Verdict
from celery_resilience.messages.changed import Changed
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.history import Succeeded
from celery_resilience.policy.decision import Decision

__all__ = ["AttemptResult"]


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
    #: The exception has come out of the body: whoever wraps that has seen it.
    seen: bool = False
    #: The exception itself, where the main process decides: it can't cross from a child.
    exception: BaseException | None = None
