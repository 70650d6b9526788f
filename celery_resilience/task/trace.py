"""Where the body runs: what is decided there is told to Celery, and sent to the parent.

Celery's tracer hands every failure to a ``TraceInfo``. Ours
(:mod:`~celery_resilience.task.trace_info`) knows what the body's end came to
(:mod:`~celery_resilience.task.body`) and decides about what was raised outside of it, before
anything is stored: the state becomes RETRY or FAILURE accordingly, and everything else (results,
hooks, signals, errbacks) is Celery's own doing. Then it is looked whether a hook has asked for a
retry.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import exceptions as _exceptions
from celery import states
from celery.app import trace as _celerys
from celery.app.task import Context
from celery.exceptions import Reject
from celery.utils.log import get_logger

from celery_resilience.classify.foreign import is_the_workers, let_through, log_raised
from celery_resilience.errors import BodyExited, BrokerError
from celery_resilience.messages.changed import what_changed
from celery_resilience.messages.error_record import said
from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.continuation import publish_rest, succeeded_before
from celery_resilience.task.decide import GONE_ON, Running, running, what_is_left, what_was_asked
from celery_resilience.task.disabled import is_disabled
from celery_resilience.task.einfo import RetryInfo, carry
from celery_resilience.task.requested_retry import make_retry
from celery_resilience.task.trace_info import ResilientTraceInfo, einfo_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Task

    from celery_resilience.messages.history import Succeeded

__all__ = ["Tracer"]

logger = get_logger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
trace: Any = _celerys
Retry: Any = _exceptions.Retry


class Tracer:
    """The ``__trace__`` of a task: whatever Celery assigns, ours takes its place."""

    def __get__(self, task: Task[Any, Any] | None, owner: type) -> Any:
        return None if task is None else task.__dict__.get("_tracer")

    def __set__(self, task: Task[Any, Any], tracer: Any) -> None:
        ours = tracer is not None and not is_disabled(task.app)
        task.__dict__["_tracer"] = _tracer(task, tracer) if ours else tracer


def _tracer(task: Task[Any, Any], assigned: Any) -> Any:
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
            result = _escaped(task, attempt, args, kwargs, request, exc)
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
    task: Task[Any, Any], uuid: str, args: Any, kwargs: Any, request: Any, before: Succeeded,
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


def _heard(task: Task[Any, Any], attempt: Running, result: Any) -> Any:
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
    task: Task[Any, Any], attempt: Running, args: Any, kwargs: Any,
    request: Mapping[str, Any] | None, exc: BaseException,
) -> Any:  # fmt: skip
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
        try:
            if not attempt.told:
                return trace.trace_ok_t(info.handle_error_state(task, context), info, 0.0, None)
        except BaseException as problem:
            let_through(problem)
        what = "%s[%s]: what became of it could not be told"
        log_raised(logger, exc, what, task.name, context.id)
        return _untold(attempt, info, error)
    finally:
        task.request_stack.pop()


def _untold(attempt: Running, info: Any, error: BaseException) -> Any:
    """Celery could not be told what was decided; the parent hears of it, and carries it out."""
    outcome = attempt.outcome
    if outcome is not None and isinstance(outcome.decision, RetryLater):
        info.state, info.retval = states.RETRY, make_retry(error, outcome.decision.delay)
        return trace.trace_ok_t(RetryInfo(info.retval, None), info, 0.0, None)
    if outcome is not None:
        attempt.outcome = replace(outcome, untold=True)
    return trace.trace_ok_t(einfo_of(error), info, 0.0, None)
