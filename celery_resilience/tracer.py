"""Where the body runs: what is decided there is told to Celery, and sent to the parent.

Celery's tracer hands every failure to a ``TraceInfo``. Ours knows what the body's end came to
(:mod:`~celery_resilience.body`) and decides about what was raised outside of it, before anything
is stored: the state becomes RETRY or FAILURE accordingly, and everything else (results, hooks,
signals, errbacks) is Celery's own doing. Then it looks whether a hook has asked for a retry.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import exceptions as _exceptions
from celery import signals, states
from celery.app import trace as _celerys
from celery.app.task import Context
from celery.exceptions import Reject
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception

from celery_resilience.asking import asked_by_raising
from celery_resilience.changed import what_changed
from celery_resilience.decision import RetryLater
from celery_resilience.errors import BodyExited, BrokerError
from celery_resilience.facts import said
from celery_resilience.foreign import is_the_workers
from celery_resilience.outcome import RetryInfo, carry
from celery_resilience.ruling import (
    GONE_ON,
    Discarded,
    Running,
    running,
    what_is_left,
    what_stands,
    what_was_asked,
)
from celery_resilience.successors import publish_rest, succeeded_before
from celery_resilience.switch import is_off

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_resilience.history import Succeeded
    from celery_resilience.task import ResilientTask

__all__ = ["Tracer"]

logger = get_logger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
trace: Any = _celerys
Retry: Any = _exceptions.Retry


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
        attempt = Running(time.time(), task)
        token = running.set(attempt)
        try:
            before = succeeded_before(request)
            if before is None:
                result = inner(uuid, args, kwargs, request)
            else:
                result = _the_rest(task, uuid, args, kwargs, request, before, attempt)
            if attempt.asked is not None or attempt.published:
                result = _heard(task, attempt, result)
        except BaseException as exc:
            if is_the_workers(exc, (request or {}).get("timelimit"), task.time_limit):
                raise
            result = _escaped(task, args, kwargs, request, exc)
        finally:
            running.reset(token)
        if not isinstance(result[0], ExceptionInfo):
            return result
        einfo, info, *rest = result
        outcome = attempt.outcome
        if outcome is not None:
            if isinstance(outcome.decision, RetryLater) and attempt.req is not None:
                outcome = replace(outcome, changed=what_changed(attempt.req, request or {}))
            carry(einfo, outcome)
        attempt.forget()
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
        attempt.outcome, attempt.stands = what_is_left(attempt, exc, before), exc
        raise


def _hostname(assigned: Any) -> str | None:
    """The node name that Celery has built into the tracer it *assigned*."""
    try:
        names = assigned.__code__.co_freevars
        name = assigned.__closure__[names.index("hostname")].cell_contents
        return name if isinstance(name, str) else None
    except (AttributeError, ValueError, TypeError):
        return None


def _heard(task: ResilientTask, attempt: Running, result: Any) -> Any:
    """*result*, now that ``self.retry`` was called by one that is no body which ended in it.

    A hook has asked for another attempt, once it was decided that there is none; or the body did,
    caught the Retry and went on: it has returned, or raised Ignore or Reject.
    """
    asked, outcome = attempt.asked, attempt.outcome
    if outcome is None:
        return result if asked is None else _asked_after_all(attempt, asked, result)
    if not attempt.told:
        return result
    if attempt.published:
        attempt.outcome = replace(outcome, decision=GONE_ON)
        return result
    assert asked is not None
    attempt.outcome = replace(outcome, decision=asked)
    cause, req = attempt.stands, attempt.req
    attempt.stands = retry = Retry(exc=getattr(cause, "exc", None) or cause, when=asked.delay)
    info = ResilientTraceInfo(states.RETRY, retry)
    task.request_stack.push(req)
    try:
        return trace.trace_ok_t(info.handle_error_state(task, req), info, result[2], None)
    finally:
        task.request_stack.pop()


def _asked_after_all(attempt: Running, asked: RetryLater, result: Any) -> Any:
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
        error = BodyExited(f"the body raised {type(exc).__name__}: {said(exc)}")
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
            stands = attempt.stands
            if not attempt.told and self.retval is not stands:
                # Nobody has decided about it yet: it was raised outside the body, or after it.
                stands = what_stands(task, req, self.retval, attempt)
            if isinstance(stands, Discarded):
                stands = stands.exc
            if stands is not None:
                self.retval = stands
                again = isinstance(stands, Retry)
                self.state = states.RETRY if again else states.FAILURE  # type: ignore[misc]
                call_errbacks = not again
            # From now on whoever asks for a retry is a hook, and heard when all have run.
            attempt.told, attempt.req = True, req
            attempt.asked, attempt.published = None, False
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
        try:
            task.on_retry(retry.exc, req.id, req.args, req.kwargs, einfo)
        except Exception as exc:
            _hear(exc, task, req, attempt)
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
        except Exception as problem:
            _hear(problem, task, req, attempt)
            exc = get_pickleable_exception(self.retval)
            return ExceptionInfo((type(exc), exc, exc.__traceback__))


def _hear(exc: Exception, task: Any, req: Any, attempt: Running) -> None:
    """A hook of the user's has raised *exc*, or the result backend is down.

    What was decided stands and the parent carries it out, unless it is a hook that asks for
    another attempt, or puts the message back.
    """
    if isinstance(exc, Reject) and getattr(exc, "requeue", False):
        raise exc
    if exc is attempt.exhausted:
        return
    if not isinstance(exc, Retry):
        logger.error(
            "%s[%s]: what became of it could not be announced", task.name, req.id, exc_info=exc
        )
    elif attempt.asked is None and not attempt.published:
        attempt.asked = asked_by_raising(task, req, exc)


def _guarded(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception:
        logger.exception("%s raised; what was decided stands", what)
