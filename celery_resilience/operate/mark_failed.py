"""Tells Celery that an operator has buried or dropped a task that no worker holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import app as _app
from celery.utils.serialization import create_exception_cls

from celery_resilience.brokers.connect import TIMEOUT
from celery_resilience.brokers.within import within
from celery_resilience.messages.dead_letter import DeadLetter

# The stubs do not know it.
Context: Any = _app.task.Context

__all__ = ["FailureNotifier"]

logger = logging.getLogger("celery_resilience")

#: After so many failures in a row the result backend is taken to be down.
_DOWN = 3


class FailureNotifier:
    """Tells Celery of each letter what a worker tells it of a task that fails for good: the state
    is FAILURE, error callbacks are called, a chord and the rest of a chain are told.

    Where that takes longer than *timeout* seconds, it stops telling Celery.
    """

    def __init__(self, app: Any, timeout: float = TIMEOUT) -> None:
        self._app = app
        self._timeout = timeout
        self._failures = 0

    def announce(self, letter: DeadLetter) -> None:
        """Tell it of *letter*, which has been written. Raises nothing."""
        self._tell(letter, "buried", self._mark_failed)

    def announce_drop(self, letter: DeadLetter, because: str = "") -> None:
        """Tell it that what *letter* is about has been dropped: as if it had been revoked."""

        def mark(backend: Any, task_id: str, error: Exception, **options: Any) -> None:
            backend.mark_as_revoked(task_id, because or "dropped by an operator", **options)

        self._tell(letter, "dropped", mark)

    def _tell(self, letter: DeadLetter, what: str, mark: Callable[..., None]) -> None:
        if self._failures >= _DOWN or not letter.task_id:
            return
        backend = self._backend_of(letter)
        try:
            within(self._timeout, lambda: self._mark(backend, letter, mark), "the result store")
            self._failures = 0
        except Exception as exc:
            # One that hangs is not waited for again.
            self._failures = _DOWN if isinstance(exc, TimeoutError) else self._failures + 1
            logger.warning(
                "%s[%s] is %s, but its state could not be stored (%r)%s",
                letter.task, letter.task_id, what, exc,
                "; not trying to store that of the others" if self._failures == _DOWN else "",
            )  # fmt: skip

    def _mark_failed(self, backend: Any, task_id: str, error: Exception, **options: Any) -> None:
        backend.mark_as_failure(task_id, error, **options)

    def _backend_of(self, letter: DeadLetter) -> Any:
        """Celery has one for each thread: here is the one that is kept."""
        task = self._app.tasks.get(letter.task)
        return self._app.backend if task is None else task.backend

    def _mark(self, backend: Any, letter: DeadLetter, mark: Callable[..., None]) -> None:
        envelope = letter.envelope
        args, kwargs, embedded = envelope.decoded_arguments() or ((), {}, {})
        request = Context(
            {**envelope.headers, **embedded, "id": letter.task_id, "args": args, "kwargs": kwargs},
            delivery_info={"exchange": envelope.exchange, "routing_key": envelope.routing_key},
        )
        task = self._app.tasks.get(letter.task)
        ignored = request.ignore_result or getattr(task, "ignore_result", False)
        even_so = getattr(task, "store_errors_even_if_ignored", False)
        # As the backend itself makes one of an exception's name when it reads a result.
        module, _, name = (letter.error.error or "Exception").rpartition(".")
        error = create_exception_cls(name, module or "builtins")(letter.error.message)
        store = not ignored or even_so
        mark(backend, letter.task_id, error, request=request, store_result=store)
