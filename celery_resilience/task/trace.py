"""Where the body runs: Celery is told what was decided there, and so is the parent.

Celery's tracer hands every failure to a ``TraceInfo``. What the body raised was decided about
already (:mod:`~celery_resilience.task.body`); our TraceInfo
(:mod:`~celery_resilience.task.trace_info`) decides about what was raised outside of it, and sets
the state, RETRY or FAILURE, before anything is stored. Results, hooks, signals and errbacks are
Celery's. A hook may then request another attempt.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app import trace as _celerys
from celery.app.task import Context
from celery.exceptions import Reject
from celery.utils.log import get_logger

from celery_resilience.classify.foreign import is_the_workers, let_through, log_raised
from celery_resilience.errors import BrokerError
from celery_resilience.messages.changed import what_changed
from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.continuation import publish_rest, succeeded_before
from celery_resilience.task.decide import GONE_ON, decide_request
from celery_resilience.task.disabled import is_disabled
from celery_resilience.task.einfo import Retry, RetryInfo, carry, einfo_of
from celery_resilience.task.reraise import exited
from celery_resilience.task.trace_info import ResilientTraceInfo, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celery import Task

__all__ = ["Tracer"]

logger = get_logger("celery_resilience")

# The stubs describe what tasks use of it, not what makes it.
trace: Any = _celerys


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
        attempt = CurrentAttempt(time.time(), task)
        token = current_attempt.set(attempt)
        try:
            before = succeeded_before(request)
            if before is None:
                traced = inner(uuid, args, kwargs, request)
            else:
                attempt.rest = before
                traced = publish_rest(task, uuid, args, kwargs, request, before)
            if attempt.requested is not None or attempt.published or attempt.decided is not None:
                traced = _hear_request(task, attempt, traced)
        except BaseException as exc:
            if is_the_workers(exc, (request or {}).get("timelimit"), task.time_limit):
                raise
            traced = _escaped(task, attempt, args, kwargs, request, exc)
        finally:
            current_attempt.reset(token)
        return _sent(attempt, request, traced) if isinstance(traced[0], ExceptionInfo) else traced

    return trace_task


def _sent(attempt: CurrentAttempt, request: Mapping[str, Any] | None, traced: Any) -> Any:
    """*traced*, with the attempt's result for the parent."""
    einfo, info, *rest = traced
    decided = attempt.decided
    if decided is not None:
        is_retry = isinstance(decided.decision, RetryLater) and attempt.req is not None
        changed = what_changed(attempt.req, request or {}) if is_retry else None
        carry(einfo, replace(decided, changed=changed, untold=attempt.untold))
    attempt.forget()
    if info is None:  # Celery would take it for a success
        info = ResilientTraceInfo(states.FAILURE, einfo.exception)
    return trace.trace_ok_t(einfo, info, *rest)


def _hostname(assigned: Any) -> str | None:
    """The node name that Celery has built into the tracer it *assigned*."""
    try:
        names = assigned.__code__.co_freevars
        name = assigned.__closure__[names.index("hostname")].cell_contents
        return name if isinstance(name, str) else None
    except (AttributeError, ValueError, TypeError):
        return None


def _hear_request(task: Task[Any, Any], attempt: CurrentAttempt, traced: Any) -> Any:
    """*traced*, now that more was decided or requested than Celery was told of.

    A hook has requested another attempt, once it was decided that there is none. Or the body has,
    but the Retry was caught, there or by what wraps it, which has returned, or raised Ignore or
    Reject: as on stock Celery that stands, and the attempt that was requested follows.
    """
    requested, decided, cause = attempt.requested, attempt.decided, attempt.raised
    if decided is None or not attempt.told:
        attempt.end(None, None)
        return traced if requested is None else _publish_request(attempt, requested, traced)
    if attempt.published:
        attempt.end(replace(decided, decision=GONE_ON), cause)
        return traced
    if requested is None:
        return traced
    retry = Retry(exc=getattr(cause, "exc", None) or cause, when=requested.delay)
    attempt.end(replace(decided, decision=requested), retry)
    return _tell(task, attempt.req, ResilientTraceInfo(states.RETRY, retry), traced[2])


def _publish_request(attempt: CurrentAttempt, requested: RetryLater, traced: Any) -> Any:
    """Publish the retry of a body that has ended well; the parent retries if that fails."""
    try:
        if attempt.publish is not None:
            attempt.publish()
            return traced
        problem: Exception = BrokerError("the retry could not be published")
    except Exception as exc:
        problem = exc
    retry = Retry(exc=problem, when=requested.delay)
    attempt.end(decide_request(attempt, requested, problem), retry)
    return _tell_parent(retry, traced[2])


def _escaped(
    task: Task[Any, Any], attempt: CurrentAttempt, args: Any, kwargs: Any,
    request: Mapping[str, Any] | None, exc: BaseException,
) -> Any:  # fmt: skip
    """What the tracer lets out would end the worker, or leave the message hanging."""
    if isinstance(exc, Reject):
        return trace.trace_ok_t(ExceptionInfo(), trace.TraceInfo(states.REJECTED, exc), 0.0, None)
    error = exc if isinstance(exc, Exception) else exited(exc)
    context = Context(dict(request or {}), args=args, kwargs=kwargs, called_directly=False)
    try:
        raise error.with_traceback(exc.__traceback__)
    except BaseException:
        try:
            if not attempt.told:
                return _tell(task, context, ResilientTraceInfo(states.FAILURE, error), 0.0)
        except BaseException as problem:
            let_through(problem)
        what = "%s[%s]: its outcome could not be reported"
        log_raised(logger, exc, what, task.name, context.id)
        attempt.untold = True
        return _tell_parent(error if attempt.decided is None else attempt.raised, 0.0)


def _tell(task: Task[Any, Any], req: Any, info: Any, runtime: float) -> Any:
    """Tell Celery, as its tracer does: the state is stored, hooks and signals are called."""
    task.request_stack.push(req)
    try:
        return trace.trace_ok_t(info.handle_error_state(task, req), info, runtime, None)
    finally:
        task.request_stack.pop()


def _tell_parent(raised: Any, runtime: float) -> Any:
    """Tell the parent alone: Celery has stored something else, or nothing can be stored."""
    info = ResilientTraceInfo(*state_of(raised))
    is_retry = info.state == states.RETRY
    einfo = RetryInfo(info.retval, None) if is_retry else einfo_of(info.retval)
    return trace.trace_ok_t(einfo, info, runtime, None)
