"""RabbitMQ: the exchanges and queues that retries pass are checked while they wait.

A level, an exchange or a binding may be deleted, and no message that a worker publishes finds
that out: RabbitMQ keeps what waits before the gap, and goes on when it is closed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["EVERY", "Upkeep"]

logger = logging.getLogger("celery_resilience")

#: How often, in seconds; each worker takes up to a quarter longer, so that they don't come at once.
EVERY = 60.0


class Upkeep:
    """Calls *make* again and again, with a connection that *connect* opens for that time.

    In a thread of its own: it takes many answers of RabbitMQ's, and the worker's loop must not
    wait for one.
    """

    def __init__(self, connect: Callable[[], Any], make: Callable[[Any], None]) -> None:
        self._connect = connect
        self._make = make
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._random = Random()

    def begin(self) -> None:
        """Go on until :meth:`end`; a second call changes nothing."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery_resilience.upkeep", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """Let the thread end, after what it is doing; that is not waited for."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(EVERY * self._random.uniform(1.0, 1.25)):
            try:
                connection = self._connect()
                try:
                    connection.connect()
                    self._make(connection)
                finally:
                    connection.collect()
            except Exception as exc:  # RabbitMQ is away: the worker says so itself
                logger.debug("the delay of retries was not checked: %r", exc)
