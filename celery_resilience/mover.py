"""The thread that moves due retries and renews the worker's lease.

A thread of its own, and not the worker's event loop: that one stands still while a solo worker
runs a task, and while a worker that goes down waits for its pool.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["DOUBTED", "Mover"]

logger = logging.getLogger("celery_resilience")

#: For so long a worker may not have said that it is alive before it takes no more messages, in
#: seconds: its lease ends later.
DOUBTED = 20.0
#: How long to wait after a failure, in seconds.
_PAUSE = 1.0


class Mover:
    """Calls the ``look`` of a broker's keeper whenever that is due."""

    def __init__(self, known_alive: Callable[[bool], None] = lambda alive: None) -> None:
        #: Told when the others are about to count this worker as dead, and when that is over.
        self._known_alive = known_alive
        self._doubted = False
        self._keeper: Any = None
        self._wake = threading.Event()
        self._ended = False
        self._failing = False
        self._thread: threading.Thread | None = None

    def use(self, keeper: Any) -> None:
        """Look with *keeper* from now on; it belongs to the worker's newest connection."""
        old, self._keeper = self._keeper, keeper
        keeper.wake = self._wake.set
        self._wake.set()
        if old is not None:
            old.close()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery_resilience.mover", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after what it is doing."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._keeper is not None:
            self._keeper.close()

    def _run(self) -> None:
        pause = 0.0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._ended:
                return
            pause = self._look()

    def _look(self) -> float:
        try:
            pause: float = self._keeper.look()
        except Exception as exc:
            if not self._failing:
                logger.warning(
                    "due retries can't be moved for now: %s: %s", type(exc).__name__, exc
                )
            self._failing = True
            pause = _PAUSE
        else:
            if self._failing:
                logger.warning("due retries are moved again")
            self._failing = False
        doubted = time.monotonic() - self._keeper.renewed_at > DOUBTED
        if doubted is not self._doubted:
            self._doubted = doubted
            self._known_alive(not doubted)
        return pause
