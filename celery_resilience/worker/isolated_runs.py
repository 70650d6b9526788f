"""Which of a worker's redelivered messages run, and which of them in isolation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet, ref

from celery.worker import state

__all__ = ["IsolatedRuns", "is_open", "is_unstarted", "reserved"]


def is_open(request: Any) -> bool:
    """Whether the message of *request* is still to be settled."""
    return not (request.acknowledged or request._settled)


def is_unstarted(request: Any) -> bool:
    """Whether the body of *request* has not begun, and it is not settled."""
    return is_open(request) and not request.time_start


def _runs(request: Any) -> bool:
    return is_open(request) and state.requests.get(request.id) is request


def reserved() -> list[Any]:
    """The requests that the worker has taken on and not finished."""
    while True:
        try:
            return list(state.reserved_requests)
        except RuntimeError:  # a thread of the pool has changed it meanwhile
            continue


class IsolatedRuns:
    """The redelivered messages that a worker has started and that have not ended, and which of
    them runs in isolation."""

    def __init__(self) -> None:
        self._started: WeakSet[Any] = WeakSet()
        #: Those that the pool has: one that is to run in isolation waits a moment before.
        self._in_pool: WeakSet[Any] = WeakSet()
        #: The one in isolation, and since when, by the monotonic clock.
        self._isolated: Callable[[], Any] = lambda: None
        self._since = 0.0

    def start(self, request: Any, *, isolated: bool) -> None:
        """*request* starts, *isolated* or beside others."""
        self._started.add(request)
        if isolated and self._isolated() is not request:
            self._isolated, self._since = ref(request), time.monotonic()

    def others_run(self, request: Any) -> bool:
        """Whether one runs that is not *request*."""
        return any(other is not request and _runs(other) for other in list(self._started))

    def other_is_isolated(self, request: Any) -> bool:
        """Whether one runs in isolation that is not *request*."""
        other = self._isolated()
        return other is not None and other is not request and _runs(other)

    def is_held(self, request: Any) -> bool:
        """Whether the worker has *request*, and has not started it."""
        return request not in self._in_pool and is_unstarted(request)

    def enter_pool(self, request: Any) -> None:
        """The pool has *request*."""
        self._in_pool.add(request)

    def waited(self, request: Any) -> float:
        """For how many seconds *request*, which is to run in isolation, has had its turn."""
        return time.monotonic() - self._since if self._isolated() is request else 0.0
