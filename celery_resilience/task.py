"""The base class of a task that is never lost."""

from __future__ import annotations

import difflib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import Task
from celery import exceptions as _exceptions
from celery.utils.imports import symbol_by_name
from celery.utils.serialization import raise_with_context

from celery_resilience.celery_options import policy_from_celery_options
from celery_resilience.consumer import watch
from celery_resilience.decision import RetryLater
from celery_resilience.policy import Policy, Unmatched
from celery_resilience.ruling import Running, running
from celery_resilience.tracer import Tracer

if TYPE_CHECKING:
    BaseTask = Task[Any, Any]
else:
    BaseTask = Task

__all__ = ["ResilientTask"]


# The stubs know how these are raised, not how they are made.
Retry: Any = _exceptions.Retry
Reject: Any = _exceptions.Reject


class ResilientTask(BaseTask):
    """Use it as a task's ``base``: its failures are classified, retried and dead-lettered.

    ::

        @app.task(base=ResilientTask)
        def sync(customer_id): ...

    What each error deserves is said by :attr:`failure_policy`; without one by Celery's own
    options (``autoretry_for`` and its kin); without those by the classifier.
    """

    abstract = True
    Request = "celery_resilience.request:ResilientRequest"
    #: A message is let go only after its attempt: what a dying worker held runs again.
    acks_late = True

    #: What each error deserves; None: Celery's options decide, or the classifier.
    failure_policy: Policy | None = None
    #: The queue for this task's dead letters; ``{queue}`` is filled in. None: the app's setting.
    dead_letter_queue: str | None = None
    #: Whether the classifier decides where neither a policy nor Celery's options do.
    classify_failures: bool = True

    __trace__ = Tracer()

    @property
    def _orig_run(self) -> Any:
        # Celery's own autoretry keeps the undecorated body under this name and leaves a task
        # alone that already has one: its options are read by the policy instead.
        return self.run

    #: The policy that decides about this task's failures; found when the task is defined.
    policy_in_force: Policy = Policy()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        super().on_bound(app)
        watch(app)
        _refuse_misspelt(cls)
        cls.policy_in_force = cls._find_policy()

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Called when a worker starts: a Request class of the user's own is mixed with ours."""
        self.Request = _with_ours(self.Request)
        return super().start_strategy(app, consumer, **kwargs)

    @classmethod
    def _find_policy(cls) -> Policy:
        if cls.failure_policy is not None:
            if not isinstance(cls.failure_policy, Policy):
                raise TypeError(
                    f"{cls.name}: failure_policy takes a Policy, got {cls.failure_policy!r}"
                )
            return cls.failure_policy
        stated = policy_from_celery_options(
            where=str(cls.name),
            autoretry_for=getattr(cls, "autoretry_for", ()),
            dont_autoretry_for=getattr(cls, "dont_autoretry_for", ()),
            max_retries=cls.max_retries,
            retry_backoff=getattr(cls, "retry_backoff", False),
            retry_backoff_max=getattr(cls, "retry_backoff_max", 600),
            retry_jitter=getattr(cls, "retry_jitter", True),
            default_retry_delay=cls.default_retry_delay,
            retry_kwargs=getattr(cls, "retry_kwargs", {}),
        )
        if stated is not None:
            return stated
        unmatched: Unmatched = "classify" if cls.classify_failures else "give_up"
        return Policy(max_retries=cls.max_retries, unmatched=unmatched)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: Any = None,
        max_retries: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's ``self.retry``; the message that is sent again is the one received.

        With new arguments or options, or ``throw=False``, a new message is published as Celery
        does it; should that fail, the received one is tried again instead.
        """
        attempt = running.get()
        request = self.request
        if attempt is None or request.called_directly or request.is_eager:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        delay = _delay(eta, self.default_retry_delay if countdown is None else countdown)
        later = RetryLater(delay, rule="self.retry")
        if args is not None or kwargs is not None or options or not throw:
            return self._retry_anew(
                attempt, later, args, kwargs, exc, throw, eta, countdown, max_retries, options
            )
        limit = self.max_retries if max_retries is None else max_retries
        exceeded: Any = self.MaxRetriesExceededError
        if limit is not None and request.retries + 1 > limit:
            attempt.exhausted = error = exc or exceeded(
                f"Can't retry {self.name}[{request.id}]: {limit} retries are used up",
                task_args=request.args,
                task_kwargs=request.kwargs,
            )
            raise_with_context(error)
        retry = Retry(exc=exc, when=eta or delay)
        attempt.asked = later
        attempt.publish = lambda: self.signature_from_request(
            request, countdown=delay, retries=request.retries + 1
        ).apply_async()
        raise retry

    def _retry_anew(
        self, attempt: Running, later: RetryLater, args: Any, kwargs: Any, exc: Any,
        throw: bool, eta: Any, countdown: Any, max_retries: Any, options: Any,
    ) -> Any:  # fmt: skip
        try:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        except Reject as reject:
            # The publish failed. Celery would let the message go now, and the task with it.
            attempt.asked = later
            attempt.publish = None
            raise Retry(exc=reject.reason, when=later.delay) from reject
        except Exception as error:
            if error is exc or isinstance(error, self.MaxRetriesExceededError):
                attempt.exhausted = error
            raise


#: What a task may say about its failures.
_OPTIONS = (
    "acks_late",
    "autoretry_for",
    "classify_failures",
    "dead_letter_queue",
    "default_retry_delay",
    "dont_autoretry_for",
    "failure_policy",
    "max_retries",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "retry_kwargs",
    "throws",
)


def _refuse_misspelt(cls: type) -> None:
    """Celery takes any word for an option and says nothing; a retry that is not meant is lost."""
    for name in vars(cls):
        if name.startswith("_") or hasattr(ResilientTask, name) or name in _OPTIONS:
            continue
        near = difflib.get_close_matches(name, _OPTIONS, 1, cutoff=0.85)
        if near:
            task = getattr(cls, "name", None) or cls.__name__
            raise TypeError(f"{task}: there is no option {name!r}; did you mean {near[0]!r}?")


def _with_ours(request: Any) -> Any:
    from celery_resilience.request import ResilientRequest

    theirs = symbol_by_name(request)
    if issubclass(theirs, ResilientRequest):
        return theirs
    if issubclass(ResilientRequest, theirs):
        return ResilientRequest
    return type(theirs.__name__, (theirs, ResilientRequest), {"__module__": theirs.__module__})


def _delay(eta: Any, countdown: Any) -> float:
    if isinstance(eta, datetime):
        now = datetime.now(timezone.utc) if eta.tzinfo else datetime.now()
        return max(0.0, (eta - now).total_seconds())
    return max(0.0, float(countdown or 0))
