"""What became of one failed attempt: the record that crosses from the child to the parent."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from billiard import einfo as _einfo
from billiard.einfo import ExceptionInfo, Traceback
from celery import exceptions as _exceptions

from celery_resilience.classify.foreign import let_through
from celery_resilience.classify.verdict import Verdict
from celery_resilience.messages.changed import Changed
from celery_resilience.messages.error_record import ErrorFacts
from celery_resilience.messages.history import Succeeded
from celery_resilience.policy.decision import Decision

__all__ = ["Outcome", "RetryInfo", "carried", "carry"]

# The stubs describe what tasks use of these, not what makes them.
Retry: Any = _exceptions.Retry
_ExceptionInfo: Any = ExceptionInfo
ExceptionWithTraceback: Any = _einfo.ExceptionWithTraceback  # type: ignore[attr-defined]


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
    #: What the body has changed of its own message; None: nothing.
    changed: Changed | None = None
    #: The child could not store that it has failed.
    untold: bool = False
    #: The exception has come out of the body: whoever wraps that has seen it.
    seen: bool = False
    #: The exception itself, where the main process decides: it can't cross from a child.
    exception: BaseException | None = None


def carry(einfo: object, outcome: Outcome) -> None:
    """Let *outcome* ride on the ExceptionInfo that the tracer returns to the parent."""
    setattr(einfo, _RIDER, outcome)


def carried(einfo: object) -> Outcome | None:
    """The outcome that rides on *einfo*; None if nobody decided where the body ran."""
    outcome = getattr(einfo, _RIDER, None)
    return outcome if isinstance(outcome, Outcome) else None


class RetryInfo(_ExceptionInfo):  # type: ignore[misc]
    """The ExceptionInfo of a retry: formats its traceback only for those who look.

    Celery's own formats it and pickles a copy of every frame for the parent, some 48 KB that
    nobody reads. This one goes to the parent without its frames.
    """

    def __init__(self, retry: Any, tb: Any) -> None:
        self.type = Retry
        self.retry = retry
        self.internal = False
        self._tb = tb

    @property
    def exception(self) -> Any:
        if self._tb is None:
            return self.retry
        return ExceptionWithTraceback(self.retry, self.traceback)  # as Celery's hooks have it

    @property
    def traceback(self) -> str:
        try:
            return "".join(traceback.format_exception(Retry, self.retry, self._tb))
        except BaseException as exc:  # of what it was raised from
            let_through(exc)
            return f"Traceback: it can't be shown ({type(exc).__name__})"

    @property
    def tb(self) -> Any:
        return None if self._tb is None else Traceback(self._tb)

    def __reduce__(self) -> Any:
        return (_received_retry, (self.retry, getattr(self, "resilience_outcome", None)))


def _received_retry(retry: Any, outcome: Outcome | None) -> RetryInfo:
    einfo = RetryInfo(retry, None)
    if outcome is not None:
        carry(einfo, outcome)
    return einfo
