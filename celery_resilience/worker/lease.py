"""What this worker holds, over the loss of a connection and to its end.

On Redis the worker's messages are its own for as long as it lives. So after a reconnection what
runs goes on as if nothing had happened, and what had only been received is requeued; at the end
everything unacknowledged is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from celery_resilience.brokers.base import Leasing
from celery_resilience.worker.pause import Why
from celery_resilience.worker.pending import PendingSettlements

__all__ = ["DOUBTED", "HousekeepingThread", "WorkerLease"]

logger = logging.getLogger("celery_resilience")


class WorkerLease:
    """The lease of one worker, on brokers that know leases."""

    def __init__(self, pending: PendingSettlements) -> None:
        self._pending = pending
        self._owner: Any = None
        self._broker: Any = None
        self._channel: Any = None
        self._thread = HousekeepingThread(self._known_alive)

    def connected(
        self, c: Any, broker: Any, running: Collection[str], *, late: bool = False
    ) -> None:
        """Hold, from now on, what the consumer *c* receives through *broker*.

        *running* are the delivery tags of what goes on, or whose settlement is repeated. A
        consumer that has received something already (*late*) goes on to hold it as kombu does,
        until its next connection.
        """
        if not isinstance(broker, Leasing):
            return
        if self._owner is None:
            self._owner = broker.lease_owner()
        again, self._broker = self._broker is not None, broker
        holds = not late and broker.consume_for(c.task_consumer.channel, self._owner)
        if holds and again:
            given = broker.leases.requeue(self._owner.id, keep=running)
            if given:
                logger.info("requeued %d messages that had not been started", given)
            owner = self._owner
            left = {tag: each for tag, each in owner.left.items() if tag not in running}
            broker.leases.write_again(owner.id, left)
            owner.left.clear()
        if late:
            logger.warning(
                "until its next connection this worker holds messages as kombu does: if it is "
                "killed before, they are redelivered after the visibility_timeout (%g s)",
                c.task_consumer.channel.visibility_timeout,
            )
        self._channel = c.task_consumer.channel
        self._thread.use(broker.housekeeper(self._owner))

    def _known_alive(self, alive: bool) -> None:
        """What this worker took now would be given to another one soon, and run twice."""
        pause = self._pending.pause
        self._pending.loop.in_loop(partial(pause.end if alive else pause.begin, Why.LEASE))

    def leave(self) -> None:
        """The worker goes down, its pool has ended: requeue what is unacknowledged."""
        self._thread.stop()
        if self._owner is None or self._channel is None:  # it was never connected
            return
        leases, owner = self._broker.leases, self._owner
        left = {**owner.left, **getattr(self._channel.qos, "left", dict)()}
        for done in owner.unsent:
            left.pop(done, None)
        try:
            leases.ack_unsent(owner)
            leases.requeue(owner.id)
            leases.write_again(owner.id, left)
            leases.forget(owner.id)
        except Exception as exc:
            logger.warning("another worker will requeue the messages of this one: %r", exc)


#: For so long a worker may not have said that it is alive before it takes no more messages, in
#: seconds: its lease ends later.
DOUBTED = 20.0
#: How long to wait after a failure, in seconds.
_PAUSE = 1.0


class HousekeepingThread:
    """Calls the ``look`` of a broker's housekeeper whenever that is due."""

    def __init__(self, known_alive: Callable[[bool], None] = lambda alive: None) -> None:
        #: Told when the others are about to count this worker as dead, and when that is over.
        self._known_alive = known_alive
        self._doubted = False
        self._housekeeper: Any = None
        self._wake = threading.Event()
        self._ended = False
        self._failing = False
        self._thread: threading.Thread | None = None

    def use(self, housekeeper: Any) -> None:
        """Look with *housekeeper* from now on; it belongs to the worker's newest connection."""
        old, self._housekeeper = self._housekeeper, housekeeper
        housekeeper.wake = self._wake.set
        self._wake.set()
        if old is not None:
            old.close()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="celery_resilience.worker.lease", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after what it is doing."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._housekeeper is not None:
            self._housekeeper.close()

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
            pause: float = self._housekeeper.run_once()
        except Exception as exc:
            if not self._failing:
                logger.warning(
                    "due retries can't be published for now: %s: %s", type(exc).__name__, exc
                )
            self._failing = True
            pause = _PAUSE
        else:
            if self._failing:
                logger.warning("due retries are published again")
            self._failing = False
        doubted = time.monotonic() - self._housekeeper.renewed_at > DOUBTED
        if doubted is not self._doubted:
            self._doubted = doubted
            self._known_alive(not doubted)
        return pause
