"""The base class of a task that is never lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Task
from celery.utils import uuid
from celery.utils.imports import symbol_by_name

from celery_resilience.messages.context import RetryContext
from celery_resilience.policy.celery_options import policy_from_celery_options
from celery_resilience.policy.default import UNSTATED
from celery_resilience.policy.policy import Policy
from celery_resilience.settings import queue_name
from celery_resilience.task import eager
from celery_resilience.task.body import wrap_body
from celery_resilience.task.context import context_of
from celery_resilience.task.context_store import keep_context_by_key
from celery_resilience.task.disabled import OrigRun
from celery_resilience.task.options import (
    have_what_the_apps_have,
    hear_of_early_acks,
    refuse_misspelt,
    warn_of_own_retry,
)
from celery_resilience.task.policies import policies_of
from celery_resilience.task.requested_retry import RetryRequest, request_retry
from celery_resilience.task.result_check import check_result_options
from celery_resilience.task.trace import Tracer

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions as BaseTask
else:
    BaseTask = Task

__all__ = ["ResilientTask", "watch"]

# What is the worker's is named, not imported: a process that only sends tasks has no need of it.
_STEP = "celery_resilience.worker.bootstep:ResilienceStep"
_REQUEST = "celery_resilience.worker.request:ResilientRequest"
_JOINED = "celery_resilience.worker.attach:joined"


def watch(app: Any) -> None:
    """Let every worker of *app* settle failures; calling it again changes nothing."""
    app.steps["consumer"].add(_STEP)


class ResilientTask(BaseTask):
    """Use it as a task's ``base``: its failures are classified, retried and dead-lettered.

    ::

        @app.task(base=ResilientTask)
        def sync(customer_id): ...

    What each error deserves is said by :attr:`failure_policy`; without one by Celery's own
    options (``autoretry_for`` and its kin); without those by the classifier.

    The worker's flags, such as ``--dead-letter-queue``, come with ``install(app)``. Without that
    call there are the settings, and ``add_flags(app)`` of :mod:`celery_resilience.worker.flags`.
    """

    abstract = True
    Request = _REQUEST
    #: A message is acknowledged after its attempt: what a dying worker was running runs again.
    acks_late = True

    #: What each error deserves, or the name of a policy that is shared; None: a pattern in the
    #: settings decides, or Celery's options, or the classifier.
    failure_policy: Policy | str | None = None
    #: The queue for this task's dead letters; ``{queue}`` is filled in. None: the app's setting.
    dead_letter_queue: str | None = None
    #: Whether the classifier decides where neither a policy nor Celery's options do.
    classify_failures: bool = True

    __trace__ = Tracer()

    #: Asked for every result; one that it answers with a true value is retried like a failure
    #: (`UnacceptableResult`). A function of the result alone, in a class body too.
    retry_on_result: Any = None
    #: ``def recover(self, failure)`` returns the result of a task whose retries are used up
    #: (reasons ``exhausted`` and ``deadline``): it succeeds with that, and leaves no dead letter.
    recover: Any = None

    #: The argument's name, or a function of the arguments, that tells which piece of work it is:
    #: a task that is sent again for it finds the :attr:`context` again. Needs a result backend
    #: that keeps values by key, such as Redis.
    context_key: Any = None
    #: Finds it in the arguments: what that names, as a function.
    key_of_context: Any = None

    _orig_run = OrigRun()

    #: What Celery's own options add up to, or the classifier's share; found when it is defined.
    policy_by_options: Policy = Policy()

    @property
    def policy_in_force(self) -> Policy:
        """The policy that decides about this task's failures, wherever it is set."""
        return policies_of(self.app).of(self).policy

    @property
    def context(self) -> RetryContext:
        """What the attempts of this task tell each other: a dict of JSON values that lasts."""
        return context_of(self)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        super().on_bound(app)
        watch(app)
        have_what_the_apps_have(cls, app)
        hear_of_early_acks(cls, app, ResilientTask)
        wrap_body(cls)
        refuse_misspelt(cls, ResilientTask)
        check_result_options(cls)
        keep_context_by_key(cls)
        if not isinstance(cls.failure_policy, (Policy, str, type(None))):
            raise TypeError(
                f"{cls.name}: failure_policy takes a Policy or the name of one, "
                f"got {cls.failure_policy!r}"
            )
        if cls.dead_letter_queue is not None:
            queue_name(cls.dead_letter_queue, f"{cls.name}: dead_letter_queue")
        cls.policy_by_options = cls._policy_by_options()

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Called when a worker starts: a Request class of the user's own is mixed with ours."""
        warn_of_own_retry(type(self), ResilientTask)
        with symbol_by_name(_JOINED)(consumer, self):
            return super().start_strategy(app, consumer, **kwargs)

    @classmethod
    def _policy_by_options(cls) -> Policy:
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
        if not cls.classify_failures:
            return Policy(max_retries=cls.max_retries, unmatched="give_up")
        stated_by = next(base for base in cls.__mro__ if "max_retries" in vars(base))
        # Celery's own default of 3 is not stated by the user.
        return UNSTATED if stated_by is Task else Policy(max_retries=cls.max_retries)

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
        call = RetryRequest(args, kwargs, exc, throw, eta, countdown, max_retries, options)
        return request_retry(self, super().retry, call)

    def apply(
        self,
        args: Any = None,
        kwargs: Any = None,
        link: Any = None,
        link_error: Any = None,
        task_id: Any = None,
        retries: Any = None,
        throw: Any = None,
        logfile: Any = None,
        loglevel: Any = None,
        headers: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's ``apply``: run it here and now, and retry it at once as its policy decides."""
        task_id = task_id or uuid()

        def once(retries: Any, args: Any = args, kwargs: Any = kwargs) -> Any:
            return super(ResilientTask, self).apply(
                args=args, kwargs=kwargs, link=link, link_error=link_error, task_id=task_id,
                retries=retries, throw=throw, logfile=logfile, loglevel=loglevel, headers=headers,
                **options,
            )  # fmt: skip

        return eager.apply(self, once, retries)
