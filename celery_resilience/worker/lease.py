"""What this worker holds, over the loss of a connection and to its end.

On Redis the worker's messages are its own for as long as it lives. So after a reconnection what
runs goes on as if nothing had happened, and what had only been received is given back; at the end
everything that was not let go is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from celery_resilience.worker.pause import Why
from celery_resilience.worker.pending import Moves

__all__ = ["DOUBTED", "Holding", "Mover"]

logger = logging.getLogger("celery_resilience")


class Holding:
    """The holder of one worker's messages, on brokers that know holders."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._holder: Any = None
        self._broker: Any = None
        self._channel: Any = None
        self._mover = Mover(self._known_alive)

    def connected(
        self, c: Any, broker: Any, running: Collection[str], *, late: bool = False
    ) -> None:
        """Hold, from now on, what the consumer *c* receives through *broker*.

        *running* are the delivery tags of what goes on, or whose settlement is repeated. A
        consumer that has received something already (*late*) goes on to hold it as kombu does,
        until its next connection.
        """
        if not hasattr(broker, "consume_for"):
            return
        if self._holder is None:
            self._holder = broker.holder()
        again, self._broker = self._broker is not None, broker
        holds = not late and broker.consume_for(c.task_consumer.channel, self._holder)
        if holds and again:
            given = broker.leases.give_back(self._holder.id, keep=running)
            if given:
                logger.info("%d messages that had not been begun are given back", given)
            holder = self._holder
            left = {tag: each for tag, each in holder.left.items() if tag not in running}
            broker.leases.write_again(holder.id, left)
            holder.left.clear()
        if late:
            logger.warning(
                "what this worker takes is held as kombu holds it until its next connection: if it "
                "is killed before, another one gets that after the visibility_timeout (%g s)",
                c.task_consumer.channel.visibility_timeout,
            )
        self._channel = c.task_consumer.channel
        self._mover.use(broker.keeper(self._holder))

    def _known_alive(self, alive: bool) -> None:
        """What this worker took now would be given to another one soon, and run twice."""
        pause = self._moves.pause
        self._moves.in_loop(partial(pause.end if alive else pause.begin, Why.LEASE))

    def leave(self) -> None:
        """The worker goes down, its pool has ended: give back what was not let go."""
        self._mover.stop()
        if self._holder is None or self._channel is None:  # it was never connected
            return
        leases, holder = self._broker.leases, self._holder
        left = {**holder.left, **getattr(self._channel.qos, "left", dict)()}
        for done in holder.unsent:
            left.pop(done, None)
        try:
            leases.let_go(holder)
            leases.give_back(holder.id)
            leases.write_again(holder.id, left)
            leases.leave(holder.id)
        except Exception as exc:
            logger.warning("what this worker holds will be given back by another one: %r", exc)


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
                target=self._run, name="celery_resilience.worker.lease", daemon=True
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
