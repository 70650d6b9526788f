"""A retry that the task requests: by ``self.retry``, or by a Retry that it raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from celery.exceptions import Reject
from celery.utils.serialization import raise_with_context
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.context import hand_on
from celery_resilience.task.einfo import Retry

__all__ = [
    "RetryRequest",
    "is_sent",
    "make_retry",
    "refused",
    "request_retry",
    "requested_by_raising",
    "take_request",
    "unnoticed",
]

#: Celery's ``Task.retry``, bound to its task.
CelerysRetry = Callable[..., Any]


@dataclass
class RetryRequest:
    """What a body has called ``self.retry`` with."""

    args: Any
    kwargs: Any
    exc: Any
    throw: bool
    eta: Any
    countdown: Any
    max_retries: Any
    options: dict[str, Any]

    def pass_on(self, celerys_retry: CelerysRetry, *, throw: bool) -> Any:
        """Have Celery carry it out; *throw*: and raise the Retry that it returns."""
        return celerys_retry(
            args=self.args, kwargs=self.kwargs, exc=self.exc, throw=throw, eta=self.eta,
            countdown=self.countdown, max_retries=self.max_retries, **self.options,
        )  # fmt: skip


def request_retry(task: Any, celerys_retry: CelerysRetry, call: RetryRequest) -> Any:
    """``self.retry`` of *task*: the message received is sent again, unless *call* changes it."""
    if isinstance(call.exc, type):
        call.exc = call.exc()  # Celery would fail to store the class, and go on in two states
    attempt, request = current_attempt.get(), task.request
    if attempt is None or request.called_directly or request.is_eager:
        return _retry_as_celery(attempt, request, celerys_retry, call)
    limit = task.max_retries if call.max_retries is None else call.max_retries
    if _is_used_up(request, limit):
        attempt.exhausted = used_up = call.exc or task.MaxRetriesExceededError(
            f"Can't retry {task.name}[{request.id}]: {limit} retries are used up",
            task_args=request.args,
            task_kwargs=request.kwargs,
        )
        raise_with_context(used_up)
    if not call.eta and call.countdown is None:
        call.countdown = task.default_retry_delay
    delay = _seconds_to_wait(call.eta, call.countdown, task.app.timezone)
    requested = RetryLater(delay, rule="self.retry")
    if call.args is not None or call.kwargs is not None or call.options or not call.throw:
        return _publish(task, attempt, celerys_retry, call, requested)
    take_request(task, attempt, requested, call.exc)
    raise unnoticed(Retry(exc=call.exc, when=call.eta or call.countdown))


def take_request(task: Any, attempt: CurrentAttempt, requested: RetryLater, cause: Any) -> None:
    """*attempt* has *requested* a retry: it follows, whoever catches the Retry."""
    request = task.request

    def publish() -> Any:
        hand_on(attempt, request, cause, requested)
        again: Any = {"countdown": requested.delay, "retries": request.retries + 1}
        return task.signature_from_request(request, **again).apply_async()

    attempt.requested, attempt.publish = requested, publish


def _retry_as_celery(
    attempt: CurrentAttempt | None, request: Any, celerys_retry: CelerysRetry, call: RetryRequest
) -> Any:
    try:
        return call.pass_on(celerys_retry, throw=call.throw)
    except Retry:
        raise
    except Exception as error:
        # Called as a function it raises what it was given, whatever its limit is.
        if attempt is not None and request.is_eager:
            attempt.exhausted = error
        raise


def _publish(
    task: Any, attempt: CurrentAttempt, celerys_retry: CelerysRetry, call: RetryRequest,
    requested: RetryLater,
) -> Any:  # fmt: skip
    hand_on(attempt, task.request, call.exc, requested)
    try:
        retry = call.pass_on(celerys_retry, throw=False)
    except Reject as reject:
        # The publish failed. Celery would acknowledge the message now: the task would be lost.
        attempt.requested, attempt.publish = requested, None
        raise unnoticed(
            Retry(exc=getattr(reject, "reason", None), when=requested.delay)
        ) from reject
    attempt.published = True
    if call.throw:
        raise unnoticed(retry)
    return retry


def _is_used_up(request: Any, limit: int | None) -> bool:
    return limit is not None and (request.retries or 0) + 1 > limit


def refused(task: Any, req: Any, retry: Any) -> BaseException:
    """What *task* has failed with, whose *retry*, raised by itself, is one too many."""
    return retry.exc or task.MaxRetriesExceededError(  # type: ignore[no-any-return]
        f"{task.name}[{req.id}] raised a Retry: its retries are used up"
    )


def make_retry(exc: BaseException, when: Any, **more: Any) -> Any:
    """The Retry that is raised for *exc*, by which the body has ended."""
    retry = Retry(exc=exc, when=when, **more)
    retry.__cause__ = exc
    return unnoticed(retry)


def unnoticed(exc: Any) -> Any:
    """*exc*, which New Relic is not to take for an error; Sentry knows Celery's control flow."""
    exc._nr_ignored = True
    return exc


def is_sent(retry: Any) -> bool:
    """Whether the message that *retry* tells of is on its way; a body can make a Retry itself, or
    have it from a task that it called as a function, or applied."""
    return retry.sig is not None and not retry.is_eager


def requested_by_raising(task: Any, req: Any, retry: Any) -> RetryLater | None:
    """What ``self.retry`` would have done; stock Celery acknowledges the message, and that is all.

    None: nothing, for its retries are used up, or the message is on its way.
    """
    if is_sent(retry) or _is_used_up(req, task.max_retries):
        return None
    countdown = task.default_retry_delay if retry.when is None else retry.when
    eta = None if isinstance(countdown, (int, float, type(None))) else countdown
    delay = _seconds_to_wait(eta, None if eta else countdown, task.app.timezone)
    return RetryLater(delay, rule="a Retry that it raised")


def _seconds_to_wait(eta: Any, countdown: Any, zone: Any) -> float:
    """As for Celery, *countdown* wins over *eta*, which is a time or a text of it."""
    if countdown or not eta:
        return max(0.0, float(countdown or 0))
    due: Any = maybe_iso8601(eta)
    wait: timedelta = maybe_make_aware(due, zone) - datetime.now(timezone.utc)
    return max(0.0, wait.total_seconds())
