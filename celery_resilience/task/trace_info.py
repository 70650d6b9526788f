"""Celery is told what was decided: its ``TraceInfo`` stores the state and calls hooks and signals.

What was decided stands, whatever the result store or a hook does meanwhile; but a hook that asks
for another attempt is heard, when all have run.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import signals, states
from celery.app import trace as _celerys
from celery.exceptions import Reject, Retry
from celery.utils.log import get_logger

from celery_resilience.classify.foreign import let_through, log_raised
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.einfo import RetryInfo, einfo_of
from celery_resilience.task.requested_retry import requested_by_raising
from celery_resilience.task.reraise import Discarded, end_attempt

__all__ = ["ResilientTraceInfo", "state_of"]

logger = get_logger("celery_resilience")

# The stubs describe what tasks use of it, not what makes it.
trace: Any = _celerys


def state_of(raised: BaseException) -> tuple[str, BaseException]:
    """What Celery calls the state and the retval of an attempt for which this is *raised*."""
    if isinstance(raised, Discarded):
        return states.FAILURE, raised.exc  # type: ignore[return-value]
    return states.RETRY if isinstance(raised, Retry) else states.FAILURE, raised


class ResilientTraceInfo(trace.TraceInfo):  # type: ignore[misc]
    """Celery's TraceInfo, which asks the policy before it believes in a failure."""

    __slots__ = ()
    state: str
    retval: Any

    def handle_error_state(
        self, task: Any, req: Any, eager: bool = False, call_errbacks: bool = True
    ) -> Any:
        attempt = current_attempt.get()
        if attempt is not None and not eager:
            if not attempt.told:
                if self.retval is not attempt.raised:  # raised outside of the body, or after it
                    end_attempt(task, req, self.retval, attempt)
                # From now on only hooks request retries; they are heard when all have run.
                attempt.told, attempt.req = True, req
                attempt.requested, attempt.published = None, False
            if attempt.raised is not None:
                self.state, self.retval = state_of(attempt.raised)  # type: ignore[misc]
                call_errbacks = self.state != states.RETRY
        return super().handle_error_state(task, req, eager=eager, call_errbacks=call_errbacks)

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **kwargs: Any) -> Any:
        attempt = current_attempt.get()
        if attempt is None or (attempt.decided is None and isinstance(sys.exc_info()[1], Retry)):
            return super().handle_retry(task, req, store_errors=store_errors, **kwargs)
        retry = self.retval
        einfo = RetryInfo(retry, sys.exc_info()[2])
        # Before 5.7 Celery stores it though the caller ignores the result, which never comes then.
        is_ignored = req.ignore_result and not task.store_errors_even_if_ignored
        # The result store and the user's hook may fail; the retry was decided all the same.
        if store_errors and not is_ignored:
            try:
                task.backend.mark_as_retry(req.id, retry.exc, einfo.traceback, request=req)
            except BaseException as exc:
                let_through(exc)
                what = "the result backend raised; the decision stands"
                log_raised(logger, exc, what)
        try:
            task.on_retry(retry.exc, req.id, req.args, req.kwargs, einfo)
        except BaseException as exc:
            _hear(exc, task, req, attempt)
        signals.task_retry.send(sender=task, request=req, reason=retry, einfo=einfo)
        return einfo

    def handle_failure(
        self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True
    ) -> Any:
        attempt = current_attempt.get()
        try:
            return super().handle_failure(
                task, req, store_errors=store_errors, call_errbacks=call_errbacks
            )
        except BaseException as problem:
            if attempt is None or attempt.decided is None:
                raise
            _hear(problem, task, req, attempt)
            attempt.untold = _is_in(problem, "store_result")
            return einfo_of(self.retval)


def _hear(exc: BaseException, task: Any, req: Any, attempt: CurrentAttempt) -> None:
    """A hook of the user's has raised *exc*, or the result backend is down.

    What was decided stands and the parent carries it out, unless it is a hook that asks for
    another attempt, or puts the message back.
    """
    let_through(exc)
    if isinstance(exc, Reject) and getattr(exc, "requeue", False):
        raise exc
    if exc is attempt.exhausted:
        return
    if not isinstance(exc, Retry):
        what = "%s[%s]: its outcome could not be announced"
        log_raised(logger, exc, what, task.name, req.id)
    elif attempt.requested is None and not attempt.published:
        attempt.requested = requested_by_raising(task, req, exc)


def _is_in(exc: BaseException, function: str) -> bool:
    """Whether *exc* was raised in a *function* of that name."""
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_name != function:
        tb = tb.tb_next
    return tb is not None
