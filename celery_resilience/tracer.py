"""Where the body runs: a failed attempt is judged, and the ruling is sent to the parent.

Celery's tracer hands every failure to a ``TraceInfo``. Ours decides there, before anything is
stored: the state becomes RETRY or FAILURE accordingly, and everything else (results, hooks,
signals, errbacks) is Celery's own doing. A task that succeeds passes through one more function.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo, Traceback
from billiard.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery import signals, states
from celery.app import trace
from celery.app.task import Context
from celery.exceptions import Reject, Retry, WorkerShutdown, WorkerTerminate
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_exception
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_resilience.classify import classify, is_control_flow
from celery_resilience.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.envelope import HEADER
from celery_resilience.errors import BodyExited, BrokerError
from celery_resilience.history import History
from celery_resilience.letter import ErrorFacts
from celery_resilience.outcome import Outcome, carry
from celery_resilience.verdict import Kind, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery_resilience.task import ResilientTask

__all__ = ["RetryInfo", "Running", "Tracer", "judge", "running"]

logger = get_logger("celery_resilience")

#: Not the module's own generator: children of one fork would draw the same numbers.
_random = random.SystemRandom()


@dataclass
class Running:
    """The attempt that is under way in this thread or greenlet."""

    #: When it began, in seconds since the epoch.
    at: float
    #: What was decided about it; the first decision stands.
    outcome: Outcome | None = None
    #: A retry that the body asked for and that has not been published.
    asked: RetryLater | None = None
    #: Publishes it Celery's way, for a body that caught the Retry and went on.
    publish: Callable[[], Any] | None = None
    #: What ``self.retry`` raised because its retries were used up.
    exhausted: BaseException | None = None


#: The attempt under way; None outside of a worker.
running: ContextVar[Running | None] = ContextVar("running", default=None)


class Tracer:
    """The ``__trace__`` of a task: whatever Celery assigns, ours takes its place."""

    def __get__(self, task: ResilientTask | None, owner: type) -> Any:
        return None if task is None else task.__dict__.get("_tracer")

    def __set__(self, task: ResilientTask, tracer: Any) -> None:
        task.__dict__["_tracer"] = None if tracer is None else _tracer(task, tracer)


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

    def trace_task(
        uuid: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None
    ) -> Any:
        attempt = Running(time.time())
        token = running.set(attempt)
        try:
            result = inner(uuid, args, kwargs, request)
            if attempt.asked is not None and result[1] is None:
                result = _asked_after_all(attempt, attempt.asked, result)
        except (WorkerShutdown, WorkerTerminate, GeneratorExit):
            raise
        except BaseException as exc:
            if type(exc).__name__ == "GreenletExit":
                raise
            result = _escaped(task, args, kwargs, request, exc)
        finally:
            running.reset(token)
        einfo, info, *rest = result
        if isinstance(einfo, ExceptionInfo):
            if attempt.outcome is not None:
                carry(einfo, attempt.outcome)
            if info is None:  # Celery would take it for a success
                info = ResilientTraceInfo(states.FAILURE, einfo.exception)
            return trace.trace_ok_t(einfo, info, *rest)
        return result

    return trace_task


def _hostname(assigned: Any) -> str | None:
    """The node name that Celery has built into the tracer it *assigned*."""
    try:
        names = assigned.__code__.co_freevars
        name = assigned.__closure__[names.index("hostname")].cell_contents
        return name if isinstance(name, str) else None
    except (AttributeError, ValueError, TypeError):
        return None


def _asked_after_all(attempt: Running, asked: RetryLater, result: Any) -> Any:
    """A body that caught the Retry it had asked for, and went on, still has asked for it."""
    try:
        if attempt.publish is not None:
            attempt.publish()
            return result
        problem: Exception = BrokerError("the retry could not be published")
    except Exception as exc:
        problem = exc
    retry = Retry(exc=problem, when=asked.delay)
    attempt.outcome = _outcome(attempt, problem, asked, _own_words("self.retry"))
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
    context = Context(request or {}, args=args, kwargs=kwargs, called_directly=False)
    info = ResilientTraceInfo(states.FAILURE, error)
    task.request_stack.push(context)
    try:
        raise error.with_traceback(exc.__traceback__)
    except BaseException:
        return trace.trace_ok_t(info.handle_error_state(task, context), info, 0.0, None)
    finally:
        task.request_stack.pop()


class ResilientTraceInfo(trace.TraceInfo):
    """Celery's TraceInfo, which asks the policy before it believes in a failure."""

    __slots__ = ()

    def handle_error_state(
        self, task: Any, req: Any, eager: bool = False, call_errbacks: bool = True
    ) -> Any:
        attempt = running.get()
        if attempt is not None and not eager:
            if attempt.outcome is None:
                attempt.outcome = _ruling(task, req, self.retval, attempt)
            decision = attempt.outcome.decision if attempt.outcome is not None else None
            if isinstance(decision, RetryLater) and not isinstance(self.retval, Retry):
                self.state = states.RETRY
                self.retval = Retry(exc=self.retval, when=decision.delay)
        return super().handle_error_state(task, req, eager=eager, call_errbacks=call_errbacks)

    def handle_retry(self, task: Any, req: Any, store_errors: bool = True, **kwargs: Any) -> Any:
        attempt = running.get()
        if attempt is None or attempt.outcome is None:
            return super().handle_retry(task, req, store_errors=store_errors, **kwargs)
        retry = self.retval
        einfo = RetryInfo(retry, sys.exc_info()[2])
        # The result store and the user's hook may fail; the retry was decided all the same.
        if store_errors:
            _guarded(
                "the result backend",
                lambda: task.backend.mark_as_retry(req.id, retry.exc, einfo.traceback, request=req),
            )
        _guarded(
            "on_retry", lambda: task.on_retry(retry.exc, req.id, req.args, req.kwargs, einfo)
        )
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


class RetryInfo(ExceptionInfo):  # type: ignore[misc]
    """The ExceptionInfo of a retry: formats its traceback only for those who look.

    Celery's own formats it and pickles a copy of every frame for the parent, some 48 KB that
    nobody reads. This one goes to the parent without its frames.
    """

    def __init__(self, retry: Any, tb: Any) -> None:
        self.type = Retry
        self.exception = retry
        self.internal = False
        self._tb = tb

    @property
    def traceback(self) -> str:  # type: ignore[override]
        return "".join(traceback.format_exception(Retry, self.exception, self._tb))

    @property
    def tb(self) -> Any:
        return None if self._tb is None else Traceback(self._tb)

    def __reduce__(self) -> Any:
        return (_received_retry, (self.exception, getattr(self, "resilience_outcome", None)))


def _received_retry(retry: Any, outcome: Outcome | None) -> RetryInfo:
    einfo = RetryInfo(retry, None)
    if outcome is not None:
        carry(einfo, outcome)
    return einfo


def _ruling(task: Any, req: Any, exc: BaseException, attempt: Running) -> Outcome | None:
    """What is to become of the attempt that ended in *exc*; None: Celery's own affair."""
    if isinstance(exc, Retry):
        if attempt.asked is None:
            return None  # published by Celery
        return _outcome(attempt, exc.exc or exc, attempt.asked, _own_words("self.retry"))
    if is_control_flow(exc):
        return None
    if _body_returned(exc):
        decision: Decision
        if _follows(req) and not _was_published(exc):
            decision = GiveUp(Reason.CHAIN, rule="what was to follow could not be published")
        else:
            decision = Drop("its body succeeded", rule="its result could not be stored")
        return _outcome(attempt, exc, decision, classify(exc))
    if exc is attempt.exhausted:
        given_up = GiveUp(Reason.EXHAUSTED, rule="self.retry, past its limit")
        return _outcome(attempt, exc, given_up, classify(exc))
    history = History.loads(header(req))
    verdict, decision = judge(
        task,
        exc,
        history,
        retries=req.retries or 0,
        began=attempt.at,
        expires=req.expires,
    )
    return _outcome(attempt, exc, decision, verdict)


def judge(
    task: Any,
    exc: BaseException,
    history: History,
    *,
    retries: int,
    began: float,
    expires: Any = None,
    reason: Reason | None = None,
    in_child: bool = True,
) -> tuple[Verdict, Decision]:
    """Ask *task*'s policy what the attempt that *began* then and ended in *exc* deserves."""
    now = time.time()
    subject = exc.__cause__ if isinstance(exc, BodyExited) and exc.__cause__ else exc
    if task.throws and isinstance(exc, tuple(task.throws)):
        verdict = Verdict(Kind.EXPECTED, "throws", "code", f"{task.name} lists it in throws")
    else:
        verdict = classify(subject)
    if reason is None and isinstance(exc, (SoftTimeLimitExceeded, TimeLimitExceeded)):
        reason = Reason.TIME_LIMIT
    failure = Failure(
        exception=exc,
        verdict=verdict,
        task=task.name,
        attempt=history.count + 1,
        retries=retries,
        age=max(0.0, now - (began if history.first is None else history.first)),
        expires_in=_expires_in(task, expires, now),
        reason=reason,
    )
    return verdict, task.policy_in_force.decide(failure, _random, call_user_code=in_child)


def header(req: Any) -> Any:
    """The text of our header, wherever the message's protocol has put it."""
    text = getattr(req, HEADER, None)
    return text if text is not None else (req.headers or {}).get(HEADER)


def _outcome(
    attempt: Running, exc: BaseException, decision: Decision, verdict: Verdict
) -> Outcome:
    return Outcome(
        decision=decision,
        verdict=verdict,
        error=ErrorFacts.of(exc, with_traceback=not isinstance(decision, RetryLater)),
        at=attempt.at,
        ran=max(0.0, time.time() - attempt.at),
    )


def _own_words(rule: str) -> Verdict:
    return Verdict(Kind.UNKNOWN, rule, "code", "the task asked for it")


def _body_returned(exc: BaseException) -> bool:
    """Whether the body had already succeeded: what is done must never be done again.

    Celery does not say; but its tracer, where the exception was caught, keeps the state that
    it had reached in a local variable.
    """
    local = _tracers_locals(exc)
    return local.get("state") == states.SUCCESS


def _was_published(exc: BaseException) -> bool:
    return bool(_tracers_locals(exc).get("callbacks_sent"))


def _tracers_locals(exc: BaseException) -> Mapping[str, Any]:
    tb = exc.__traceback__
    if tb is None or tb.tb_frame.f_code.co_filename != trace.__file__:
        return {}
    return tb.tb_frame.f_locals


def _follows(req: Any) -> bool:
    return bool(req.chain or req.callbacks)


def _expires_in(task: Any, expires: Any, now: float) -> float | None:
    if expires is None:
        return None
    try:
        moment = maybe_make_aware(maybe_iso8601(expires), task.app.timezone)
        return float(moment.timestamp() - now)
    except Exception:  # Celery has refused the message if it can't read this
        return None


def _guarded(what: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception:
        logger.exception("%s raised; what was decided stands", what)
