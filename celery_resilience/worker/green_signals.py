"""The signals that tell a worker to end, where its pool is one of greenlets.

Celery's handlers wait: for a soft shutdown, for the pool. A signal comes to whichever greenlet runs
just then. If that is the hub, which may not wait, the worker ends of an error, and gevent raises
what is left of a deadline into its end; if it is a task's, the handler is killed with the task.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import platforms

__all__ = ["GreenSignals"]

#: What Celery ends for.
_TOLD_TO_END = ("SIGTERM", "SIGINT", "SIGQUIT")
#: How often to look whether a handler has ended, in seconds.
_LOOK = 0.02


class GreenSignals(platforms.Signals):
    """Lets each of these handlers run in a greenlet of its own, which *spawn* begins.

    Those too that Celery puts in their place while it goes down. What they raise to end the worker
    comes to its main greenlet.
    """

    def __init__(self, spawn: Callable[..., Any]) -> None:
        self._spawn = spawn
        #: The calls that have not ended; a signal may come while another one's is taken out.
        self._running: set[object] = set()

    def install(self) -> None:
        """Celery installs all of its handlers through this from now on."""
        platforms.signals = self

    def wait(self) -> None:
        """Wait until the handlers have ended: a cold shutdown waits for its pool in one of them."""
        while self._running:
            time.sleep(_LOOK)

    def __setitem__(self, name: Any, handler: Any) -> None:
        if name in _TOLD_TO_END and callable(handler):
            handler = self._in_its_own(handler)
        super().__setitem__(name, handler)

    def _in_its_own(self, handler: Callable[..., Any]) -> Callable[..., None]:
        def run(call: object, *args: Any) -> None:
            try:
                handler(*args)
            finally:
                self._running.discard(call)

        @wraps(handler)
        def begin(*args: Any) -> None:
            call = object()
            self._running.add(call)
            self._spawn(run, call, *args)

        return begin
