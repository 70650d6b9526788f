"""The ExceptionInfo that a child returns to the parent: the attempt's result travels on it."""

from __future__ import annotations

import traceback
from typing import Any

from billiard import einfo as _einfo
from billiard.einfo import ExceptionInfo, Traceback
from celery import exceptions as _exceptions
from celery.utils.serialization import get_pickleable_exception as _pickleable

from celery_resilience.classify.foreign import let_through
from celery_resilience.errors import BodyExited, unreadable
from celery_resilience.task.attempt import AttemptResult

__all__ = ["Retry", "RetryInfo", "carried", "carry", "einfo_of"]

# The stubs describe what tasks use of these, not what makes them.
Retry: Any = _exceptions.Retry
_ExceptionInfo: Any = ExceptionInfo
get_pickleable_exception: Any = _pickleable
ExceptionWithTraceback: Any = _einfo.ExceptionWithTraceback  # type: ignore[attr-defined]

#: The attribute of an ExceptionInfo that has the attempt's result.
_ATTRIBUTE = "resilience_outcome"


def carry(einfo: object, result: AttemptResult) -> None:
    """Send *result* to the parent, on the ExceptionInfo that the tracer returns."""
    setattr(einfo, _ATTRIBUTE, result)


def carried(einfo: object) -> AttemptResult | None:
    """The result on *einfo*; None if nothing was decided where the body ran."""
    result = getattr(einfo, _ATTRIBUTE, None)
    return result if isinstance(result, AttemptResult) else None


def einfo_of(exc: BaseException) -> ExceptionInfo:
    """One that can be shown, and sent to the parent."""
    try:
        exc = get_pickleable_exception(exc)
        return ExceptionInfo((type(exc), exc, exc.__traceback__))
    except BaseException as problem:
        let_through(problem)
        try:
            raise unreadable(exc, problem) from None
        except BodyExited:
            return ExceptionInfo()


class RetryInfo(_ExceptionInfo):  # type: ignore[misc]
    """The ExceptionInfo of a retry: formats its traceback only for those who look.

    Celery's own formats it and pickles a copy of every frame for the parent, some 48 KB that
    is never read. This one goes to the parent without its frames.
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
        return (_received_retry, (self.retry, getattr(self, _ATTRIBUTE, None)))


def _received_retry(retry: Any, result: AttemptResult | None) -> RetryInfo:
    einfo = RetryInfo(retry, None)
    if result is not None:
        carry(einfo, result)
    return einfo
