"""What this worker holds, over the loss of a connection and to its end.

On Redis the worker's messages are its own for as long as it lives. So after a reconnection what
runs goes on as if nothing had happened, and what had only been received is given back; at the end
everything that was not let go is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial
from typing import Any

from celery_resilience.mover import Mover
from celery_resilience.moves import Moves
from celery_resilience.pause import Why

__all__ = ["Holding"]

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
