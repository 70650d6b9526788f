"""What became of one failed attempt: the record that crosses from the child to the parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_resilience.decision import Decision
from celery_resilience.facts import ErrorFacts
from celery_resilience.history import Succeeded
from celery_resilience.verdict import Verdict

__all__ = ["Outcome", "carried", "carry"]

#: The attribute of an ExceptionInfo that an outcome rides on.
_RIDER = "resilience_outcome"


@dataclass(frozen=True)
class Outcome:
    """One failed attempt and what was decided about it; text and numbers only, so it pickles."""

    decision: Decision
    verdict: Verdict
    error: ErrorFacts
    #: When the attempt began, in seconds since the epoch, and how long it ran.
    at: float
    ran: float
    #: The attempt's context, as `RetryContext.levels` has it; None if the body left it alone.
    context: tuple[dict[str, Any], ...] | None = None
    #: The body has succeeded; this is left to be done.
    succeeded: Succeeded | None = None


def carry(einfo: object, outcome: Outcome) -> None:
    """Let *outcome* ride on the ExceptionInfo that the tracer returns to the parent."""
    setattr(einfo, _RIDER, outcome)


def carried(einfo: object) -> Outcome | None:
    """The outcome that rides on *einfo*; None if nobody decided where the body ran."""
    outcome = getattr(einfo, _RIDER, None)
    return outcome if isinstance(outcome, Outcome) else None
