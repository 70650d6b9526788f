"""Where the body runs: a failed attempt is judged, and the ruling is sent to the parent.

Celery's tracer hands every failure to a ``TraceInfo``. Ours decides there, before anything is
stored: the state becomes RETRY or FAILURE accordingly, and everything else (results, hooks,
signals, errbacks) is Celery's own doing. A task that succeeds passes through one more function.
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from billiard import einfo as _einfo
from billiard.einfo import ExceptionInfo, Traceback
from celery import exceptions as _exceptions
from celery import signals, states
from celery.app import trace as _celerys
from celery.app.task import Context
from celery.exceptions import Reject, WorkerShutdown, WorkerTerminate
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception

from celery_resilience.decision import GiveUp, RetryLater
from celery_resilience.errors import BodyExited, BrokerError
from celery_resilience.outcome import Outcome, carry
from celery_resilience.ruling import (
    Running,
    published_anew,
    rule_on,
    running,
    what_is_left,
    what_was_asked,
)
from celery_resilience.successors import publish_rest, succeeded_before
from celery_resilience.switch import is_off

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_resilience.history import Succeeded
    from celery_resilience.task import ResilientTask

__all__ = ["RetryInfo", "Tracer"]

logger = get_logger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
trace: Any = _celerys
Retry: Any = _exceptions.Retry
_ExceptionInfo: Any = ExceptionInfo
ExceptionWithTraceback: Any = _einfo.ExceptionWithTraceback  # type: ignore[attr-defined]


class Tracer:
    """The ``__trace__`` of a task: whatever Celery assigns, ours takes its place."""

    def __get__(self, task: ResilientTask | None, owner: type) -> Any:
        return None if task is None else task.__dict__.get("_tracer")

    def __set__(self, task: ResilientTask, tracer: Any) -> None:
        ours = tracer is not None and not is_off(task.app)
        task.__dict__["_tracer"] = _tracer(task, tracer) if ours else tracer


def _tracer(task: ResilientTask, assigned: Any) -> Any:
    # Looked up on the module: error trackers and tracers put their own build_tracer there.
    inner = trace.build_tracer(
        task.name,
        task,
        loader=task.app.loader,
        hostname=_hostname(assigned),
        app=task.app,
        Info=ResilientTraceInfo,
    )

    def trace_task(uuid: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None) -> Any:
        attempt = Running(time.time())
        token = running.set(attempt)
        try:
            before = succeeded_before(request)
            if before is None:
                result = inner(uuid, args, kwargs, request)
            else:
                result = _the_rest(task, uuid, args, kwargs, request, before, attempt)
            if attempt.asked is not None and attempt.outcome is None:
                result = _asked_after_all(attempt, attempt.asked, result)
        except BaseException as exc:
            if _is_the_workers(exc, task, request):
                raise
            result = _escaped(task, args, kwargs, request, exc)
        finally:
            running.reset(token)
        if not isinstance(result[0], ExceptionInfo):
            return result
        einfo, info, *rest = result
        if attempt.outcome is not None:
            carry(einfo, attempt.outcome)
        if info is None:  # Celery would take it for a success
            info = ResilientTraceInfo(states.FAILURE, einfo.exception)
        return trace.trace_ok_t(einfo, info, *rest)

    return trace_task


def _the_rest(
    task: ResilientTask, uuid: str, args: Any, kwargs: Any, request: Any, before: Succeeded,
    attempt: Running,
) -> Any:  # fmt: skip
    try:
        return publish_rest(task, uuid, args, kwargs, request, before)
    except Exception as exc:
        attempt.outcome = what_is_left(attempt, exc, before)
        raise


def _hostname(assigned: Any) -> str | None:
    """The node name that Celery has built into the tracer it *assigned*."""
    try:
        names = assigned.__code__.co_freevars
        name = assigned.__closure__[names.index("hostname")].cell_contents
        return name if isinstance(name, str) else None
    except (AttributeError, ValueError, TypeError):
        return None


def _is_the_workers(
    exc: BaseException, task: ResilientTask, request: Mapping[str, Any] | None
) -> bool:
    """Whether *exc* is for the worker, not about the task: shutdown, a greenlet's end or limit."""
    if isinstance(exc, (WorkerShutdown, WorkerTerminate, GeneratorExit)) or _is_killed(exc):
        return True
    if not type(exc).__module__.startswith(("gevent", "eventlet", "greenlet")):
        return False
    limited = (request or {}).get("timelimit") or (None, None)
    return type(exc).__name__ == "GreenletExit" or bool(limited[0] or task.time_limit)


def _is_killed(exc: BaseException) -> bool:
    """Whether it is the exit of a child that was told to end, by a hard limit or a revocation."""
    tb = exc.__traceback__ if isinstance(exc, SystemExit) else None
    while tb is not None:
        code, module = tb.tb_frame.f_code, tb.tb_frame.f_globals.get("__name__")
        if (module, code.co_name) == ("billiard.common", "_shutdown_cleanup"):
            return True
        tb = tb.tb_next
    return False


def _asked_after_all(attempt: Running, asked: RetryLater, result: Any) -> Any:
    """A body that caught the Retry it had asked for, and went on, still has asked for it.

    It has returned, or raised Ignore or Reject.
    """
    try:
        if attempt.publish is not None:
            attempt.publish()
            return result
        problem: Exception = BrokerError("the retry could not be published")
    except Exception as exc:
        problem = exc
    retry = Retry(exc=problem, when=asked.delay)
    attempt.outcome = what_was_asked(attempt, problem, asked)
    info = ResilientTraceInfo(states.RETRY, retry)
    return trace.trace_ok_t(RetryInfo(retry, None), info, result[2], None)


def _escaped(
    task: ResilientTask,
    args: Any,
    kwargs: Any,
    request: Mapping[str, Any] | None,
    exc: BaseException,
) -> Any:
    """What the tracer lets out would end the worker, or leave the message hanging."""
    if isinstance(exc, Reject):
        return trace.trace_ok_t(ExceptionInfo(), trace.TraceInfo(states.REJECTED, exc), 0.0, None)
    error: BaseException = exc
    if not isinstance(exc, Exception):
        error = BodyExited(f"the body raised {type(exc).__name__}: {exc}")
        error.__cause__ = exc
    context = Context(dict(request or {}), args=args, kwargs=kwargs, called_directly=False)
    info = ResilientTraceInfo(states.FAILURE, error)
    task.request_stack.push(context)
    try:
        raise error.with_traceback(exc.__traceback__)
    except BaseException:
        return trace.trace_ok_t(info.handle_error_state(task, context), info, 0.0, None)
    finally:
        task.request_stack.pop()


class ResilientTraceInfo(trace.TraceInfo):  # type: ignore[misc]
    """Celery's TraceInfo, which asks the policy before it believes in a failure."""

    __slots__ = ()
    state: str
    retval: Any

    def handle_error_state(
        self, task: Any, req: Any, eager: bool = False, call_errbacks: bool = True
    ) -> Any:
        attempt = running.get()
        if attempt is not None and not eager:
            if attempt.outcome is None:
                attempt.outcome = rule_on(task, req, self.retval, attempt)
            decision = attempt.outcome.decision if attempt.outcome is not None else None
            if isinstance(decision, RetryLater) and not isinstance(self.retval, Retry):
                self.state = states.RETRY  # type: ignore[misc]
                retry = published_anew(task, self.retval, decision)
                if retry is not None:
                    attempt.outcome = None  # a retry as Celery makes it: nothing is to be moved
                self.retval = retry or Retry(exc=self.retval, when=decision.delay)
            elif isinstance(decision, GiveUp) and isinstance(self.retval, Retry):
                self.state, call_errbacks = states.FAILURE, True  # type: ignore[misc]
                self.retval = self.retval.exc or task.MaxRetriesExceededError(
                    f"{task.name}[{req.id}] raised a Retry: its retries are used up"
                )
        return super().handle_error_state(task, req, eager=eager, call_errbacks=call_errbacks)

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **kwargs: Any) -> Any:
        attempt = running.get()
        if attempt is None or (attempt.outcome is None and isinstance(sys.exc_info()[1], Retry)):
            return super().handle_retry(task, req, store_errors=store_errors, **kwargs)
        retry = self.retval
        einfo = RetryInfo(retry, sys.exc_info()[2])
        # Before 5.7 Celery stores it though the caller ignores the result, which never comes then.
        is_ignored = req.ignore_result and not task.store_errors_even_if_ignored
        # The result store and the user's hook may fail; the retry was decided all the same.
        if store_errors and not is_ignored:
            _guarded(
                "the result backend",
                lambda: task.backend.mark_as_retry(req.id, retry.exc, einfo.traceback, request=req),
            )
        _guarded("on_retry", lambda: task.on_retry(retry.exc, req.id, req.args, req.kwargs, einfo))
        signals.task_retry.send(sender=task, request=req, reason=retry, einfo=einfo)
        return einfo

    def handle_failure(
        self, task: Any, req: Any, store_errors: bool = True, call_errbacks: bool = True
    ) -> Any:
        attempt = running.get()
        if attempt is None or attempt.outcome is None:
            return super().handle_failure(
                task, req, store_errors=store_errors, call_errbacks=call_errbacks
            )
        try:
            return super().handle_failure(
                task, req, store_errors=store_errors, call_errbacks=call_errbacks
            )
        except Exception:
            # The result backend is down, or the user's on_failure raised. What was decided
            # stands, and the parent carries it out.
            logger.exception("%s[%s]: its failure could not be announced", task.name, req.id)
            exc = get_pickleable_exception(self.retval)
            return ExceptionInfo((type(exc), exc, exc.__traceback__))


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
        return "".join(traceback.format_exception(Retry, self.retry, self._tb))

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


def _guarded(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception:
        logger.exception("%s raised; what was decided stands", what)
