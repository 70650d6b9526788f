"""``context_key``: the business key under which a task that is sent again finds its context.

Without it a context lives in the message, and with it too; but a failed attempt then leaves it in
the result backend as well, beside the results, for as long as these are kept. The success of a
task with the same key ends it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import ImproperlyConfigured

from celery_resilience.classify.foreign import let_through
from celery_resilience.errors import did_you_mean
from celery_resilience.messages.context import levels_of
from celery_resilience.task.attempt import CurrentAttempt

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions

__all__ = ["Store", "keep_context_by_key", "open_store", "refuse_stores_without_keys"]

logger = logging.getLogger("celery_resilience")


def keep_context_by_key(cls: type[TaskWithOptions]) -> None:
    """Let the task *cls*, if it states a ``context_key``, keep its context under that key.

    Raises TypeError for a key that is neither an argument's name nor a plain function.
    """
    stated = inspect.getattr_static(cls, "context_key", None)
    if stated is None:
        return
    key = stated.__func__ if isinstance(stated, staticmethod) else stated
    cls.key_of_context = staticmethod(_reader(cls, key))
    if not isinstance(key, str):
        cls.context_key = staticmethod(key)


def open_store(attempt: CurrentAttempt, args: Any, kwargs: Any) -> Store | None:
    """Where the context of *attempt*, with these arguments, is kept; None: nowhere."""
    task = attempt.task
    if task.request.is_eager:
        return None
    name = _guarded(task, lambda: task.key_of_context(args, kwargs), "context_key")
    if name is None:
        return None
    store = Store(task, str(name))
    attempt.stored = store.load
    return store


def refuse_stores_without_keys(app: Any) -> None:
    """Refuse to start a worker whose result backend can't keep what a ``context_key`` names."""
    for task in app.tasks.values():
        if getattr(task, "context_key", None) is None:
            continue
        if not isinstance(task.backend, BaseKeyValueStoreBackend):
            raise ImproperlyConfigured(
                f"{task.name}: context_key needs a result backend that keeps values by key, such "
                f"as redis://, got {type(task.backend).__name__}"
            )


class Store:
    """The place in the result backend where the context of one business key is kept."""

    def __init__(self, task: TaskWithOptions, name: str) -> None:
        self._task = task
        # The stubs know a backend of results, not one that keeps values by key.
        self._backend = cast(Any, task.backend)
        digest = hashlib.sha256(f"{task.name}\0{name}".encode()).hexdigest()
        # Where the result of a task with this id would be: a key that every backend can take.
        self._key = self._backend.get_key_for_task(f"resilience-context-{digest}")

    def load(self) -> tuple[dict[str, Any], ...]:
        """The levels that are kept; none where there are none, or the store does not answer."""

        def load() -> Any:
            text = self._backend.get(self._key)
            return levels_of(json.loads(text)) if text else ()

        return _guarded(self._task, load, "reading the context") or ()

    def save(self, attempt: CurrentAttempt) -> None:
        """Keep what *attempt* has in its context, if its body has asked for that."""
        levels = attempt.context_levels()
        if levels is not None:
            text = json.dumps(levels)
            _guarded(self._task, lambda: self._backend.set(self._key, text), "keeping it")

    def delete(self) -> None:
        """Forget it: the work that it was about is done."""
        _guarded(self._task, lambda: self._backend.delete(self._key), "ending the context")


def _reader(cls: type[Any], key: Any) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """What finds the business key in a task's arguments."""
    task = getattr(cls, "name", None) or cls.__name__
    if callable(key) and not inspect.iscoroutinefunction(key):
        return lambda args, kwargs: key(*args, **kwargs)
    if not isinstance(key, str):
        raise TypeError(f"{task}: context_key takes an argument's name or a function, got {key!r}")
    signature = inspect.signature(cls.run)
    if key not in signature.parameters:
        meant = did_you_mean(key, signature.parameters)
        raise TypeError(f"{task}: context_key names {key!r}, which is no argument of it{meant}")

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return bound.arguments[key]

    return read


def _guarded(task: TaskWithOptions, call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except BaseException as exc:
        let_through(exc)
        logger.exception("%s: %s failed; the task goes on with its message's", task.name, what)
        return None
