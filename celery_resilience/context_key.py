"""``context_key``: the business key under which a task that is sent anew finds its context again.

Without it a context lives in the message, and with it too; but a failed attempt then leaves it in
the result backend as well, beside the results, for as long as these are kept. The success of a
task with the same key ends it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import ImproperlyConfigured

from celery_resilience.context import levels_of
from celery_resilience.ruling import Running, running

if TYPE_CHECKING:
    from celery_resilience.task import ResilientTask

__all__ = ["keep_context_by_key", "refuse_stores_without_keys"]

logger = logging.getLogger("celery_resilience")


def keep_context_by_key(cls: type[ResilientTask]) -> None:
    """Let the task *cls*, if it states a ``context_key``, keep its context under that key.

    Raises TypeError for a key that is neither an argument's name nor a plain function.
    """
    stated = inspect.getattr_static(cls, "context_key", None)
    if stated is None:
        return
    key = stated.__func__ if isinstance(stated, staticmethod) else stated
    body = inspect.getattr_static(cls, "run")
    is_static = isinstance(body, staticmethod)
    body = body.__func__ if is_static else body
    key_of = _reader(cls, key, body, is_static)
    if not isinstance(key, str):
        cls.context_key = staticmethod(key)
    if getattr(body, "keeps_context", False):
        return

    @functools.wraps(body)
    def run(self: ResilientTask, *args: Any, **kwargs: Any) -> Any:
        attempt, request = running.get(), self.request
        given = args if is_static else (self, *args)
        if attempt is None or request.called_directly or request.is_eager:
            return body(*given, **kwargs)
        name = _guarded(self, lambda: key_of(args, kwargs), "context_key")
        if name is None:
            return body(*given, **kwargs)
        store = _Store(self, str(name))
        attempt.stored = store.load
        try:
            result = body(*given, **kwargs)
        except Exception:
            store.save(attempt)
            raise
        store.delete()
        return result

    run.__dict__["keeps_context"] = True
    cls.run = run  # type: ignore[assignment,method-assign]


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


class _Store:
    """The place in the result backend where the context of one business key is kept."""

    def __init__(self, task: ResilientTask, name: str) -> None:
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

    def save(self, attempt: Running) -> None:
        """Keep what *attempt* has in its context, if its body has asked for that."""
        levels = attempt.context_levels()
        if levels is not None:
            text = json.dumps(levels)
            _guarded(self._task, lambda: self._backend.set(self._key, text), "keeping it")

    def delete(self) -> None:
        """Forget it: the work that it was about is done."""
        _guarded(self._task, lambda: self._backend.delete(self._key), "ending the context")


def _reader(
    cls: type, key: Any, body: Any, is_static: bool
) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """What finds the business key in a task's arguments."""
    task = getattr(cls, "name", None) or cls.__name__
    if callable(key) and not inspect.iscoroutinefunction(key):
        return lambda args, kwargs: key(*args, **kwargs)
    if not isinstance(key, str):
        raise TypeError(f"{task}: context_key takes an argument's name or a function, got {key!r}")
    signature = inspect.signature(body)
    if key not in signature.parameters:
        near = get_close_matches(key, signature.parameters, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{task}: context_key names {key!r}, which is no argument of it{meant}")

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = signature.bind(*(args if is_static else (None, *args)), **kwargs)
        bound.apply_defaults()
        return bound.arguments[key]

    return read


def _guarded(task: ResilientTask, call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except Exception:
        logger.exception("%s: %s failed; the task goes on with its message's", task.name, what)
        return None
