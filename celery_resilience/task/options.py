"""What a task states: words that are misspelt are refused, and what may not be meant is told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_resilience.errors import nearest
from celery_resilience.settings import is_stated

if TYPE_CHECKING:
    from celery import Task

    class TaskWithOptions(Task[Any, Any]):
        """What a ResilientTask has beside what every task has, for those whom it stands on."""

        retry_on_result: Any
        recover: Any
        context_key: Any
        key_of_context: Any


__all__ = [
    "have_what_the_apps_have",
    "hear_of_early_acks",
    "refuse_misspelt",
    "warn_of_own_retry",
]

logger = logging.getLogger("celery_resilience")

#: What a task may say about its failures.
_OPTIONS = (
    "acks_late",
    "autoretry_for",
    "classify_failures",
    "context_key",
    "dead_letter_queue",
    "default_retry_delay",
    "dont_autoretry_for",
    "failure_policy",
    "max_retries",
    "recover",
    "retry_backoff",
    "retry_backoff_max",
    "retry_jitter",
    "retry_kwargs",
    "retry_on_result",
    "throws",
)


def have_what_the_apps_have(cls: Any, app: Any) -> None:
    """Mix in the app's own class of tasks, which may say more than Celery's, as Django's does."""
    if cls.name and any(base not in cls.__mro__ for base in app.Task.__mro__[1:]):
        cls.__bases__ = (*cls.__bases__, app.Task)


def hear_of_early_acks(cls: Any, app: Any, ours: type) -> None:
    """Ours is only a default: ``task_acks_late = False`` in the app's settings wins."""
    stated_by = next(base for base in cls.__mro__ if "acks_late" in vars(base))
    if stated_by is ours and is_stated(app, "task_acks_late"):
        cls.acks_late = app.conf.task_acks_late


def refuse_misspelt(cls: type, ours: type) -> None:
    """Celery takes any word for an option and says nothing; a retry that is not meant is lost."""
    # Not hasattr: asking a class of tasks for its app binds it, and with it, Celery then thinks,
    # every task that has it as a base: they would share one request and miss their annotations.
    known = {*dir(ours), *_OPTIONS}
    for name in vars(cls):
        if name.startswith("_") or name in known:
            continue
        near = nearest(name, _OPTIONS, cutoff=0.85)
        if near is not None:
            task = getattr(cls, "name", None) or cls.__name__
            raise TypeError(f"{task}: there is no option {name!r}; did you mean {near!r}?")


#: Bases that were told of.
_warned: set[type] = set()


def warn_of_own_retry(cls: type, ours: type) -> None:
    """Tell, once, of a base class that thinks every retry goes through it."""
    for base in cls.__mro__[: cls.__mro__.index(ours)]:
        if "retry" in vars(base) and base not in _warned:
            _warned.add(base)
            logger.warning(
                "%s overrides retry(): it is called where a body calls self.retry, and not for "
                "what a policy, autoretry_for or the classifier retries. on_retry, and the signal "
                "task_retry, come for every retry.",
                base.__qualname__,
            )
