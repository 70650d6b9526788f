"""RabbitMQ: publish the copy, let the original go when the confirm comes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery_resilience.brokers import Done, Found, NotOurs, Received, Unroutable, queues
from celery_resilience.brokers.confirms import SHORT, Confirms
from celery_resilience.brokers.delay import (
    USUAL,
    Delay,
    Refused,
    forget,
    level_name,
    routing_key,
    waiting_levels,
)
from celery_resilience.brokers.looks import Look
from celery_resilience.brokers.ownership import on_rabbitmq
from celery_resilience.envelope import Envelope
from celery_resilience.errors import BrokerError
from celery_resilience.settings import Settings

__all__ = ["AmqpBroker"]

logger = logging.getLogger("celery_resilience")


class AmqpBroker:
    """A :class:`~celery_resilience.brokers.Broker` on RabbitMQ."""

    def __init__(self, connection: Any, hub: Any = None, settings: Settings | None = None) -> None:
        self._theirs = connection
        self._confirms = Confirms(connection, hub)
        self._settings = settings or Settings()
        self._delay = Delay()
        self._looks: list[Look] = []

    # Moves

    def prepare(self, names: Iterable[str]) -> None:
        """Make, when a worker connects, what retries of its queues will need. Raises nothing."""
        if self._settings.hold_retries == "worker":
            return
        known: set[str] = set()
        for queue in names:
            try:
                self._prepare(self._theirs, known, queue, USUAL)
            except Refused:
                continue  # it has been said
            except Exception as exc:
                logger.warning("%s: nothing is ready for its retries yet: %r", queue, exc)

    def _prepare(
        self, connection: Any, known: set[str], queue: str, levels: int, priority: object = None
    ) -> None:
        letters = self._settings.queue_for(queue)
        if letters not in known:
            forget(known)  # a queue that was deleted has lost its binding too
            queues.make(connection, letters, self._settings.dead_letter_queue_arguments)
            known.add(letters)
        self._delay.prepare(connection, known, queue, letters, levels, priority)

    def hold(self, received: Received, copy: Envelope, delay: float, done: Done) -> None:
        queue, settings = received.envelope.queue, self._settings
        if delay < 1 or settings.hold_retries == "worker" or not self._delay.takes(queue):
            self._move(received, copy.due_in(delay), "", queue, done)
            return
        seconds = math.ceil(delay)
        levels = seconds.bit_length()
        priority = copy.properties.get("priority")
        prepared = False

        def prepare() -> None:
            nonlocal prepared
            confirms = self._confirms
            self._prepare(confirms.connection, confirms.declared, queue, levels, priority)
            prepared = True

        def over(problem: BaseException | None) -> None:
            if isinstance(problem, Refused):
                self._move(received, copy.due_in(delay), "", queue, done)
            elif isinstance(problem, Unroutable) and prepared:
                # It is not the queue that has gone, but a level.
                forget(self._confirms.declared)
                done(BrokerError(f"{problem}; it is made again"))
            else:
                done(problem)

        self._move(
            received, copy.due(None), level_name(levels - 1, priority),
            routing_key(seconds, queue, settings.queue_for(queue)), over, prepare,
        )  # fmt: skip

    def bury(
        self, received: Received, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        self._move(received, letter, "", queue, done, lambda: self._make(queue, arguments))

    def _move(
        self,
        received: Received,
        copy: Envelope,
        exchange: str,
        key: str,
        done: Done,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        whose = on_rabbitmq(received)
        if not whose.is_ours:
            done(NotOurs(whose.value))
            return
        if not whose.has_original:
            _forget(received.message)

        def over(problem: BaseException | None) -> None:
            if problem is None and whose.is_unusual:
                logger.warning("%s: %s; its copy is published", received.name, whose.value)
            done(problem)

        self._confirms.publish(copy, exchange, key, over, prepare)

    def flush(self, timeout: float) -> None:
        self._confirms.flush(timeout)

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        self._confirms.check()

    def _make(self, queue: str, arguments: Any) -> None:
        """Make *queue* unless it is there, or is known to be."""
        if queue not in self._confirms.declared:
            queues.make(self._confirms.connection, queue, arguments)
            self._confirms.declared.add(queue)

    # For an operator: always without a loop

    def count(self, queue: str) -> int:
        with self._confirms.lock:
            self._confirms.open()
            return queues.size(self._confirms.connection, queue) or 0

    def waiting_levels(self) -> list[tuple[float, int]]:
        """Each level of the delay: its seconds, and how many retries wait in it.

        A retry passes several, the longest first; which are whose, RabbitMQ does not tell.
        """
        with self._confirms.lock:
            self._confirms.open()
            return waiting_levels(self._confirms.connection)

    def look(self, queue: str, limit: int | None = None) -> Iterator[Found]:
        self._confirms.open()
        if limit == 0 or queues.size(self._confirms.connection, queue) is None:
            return
        look = Look(self._confirms, queue)
        self._looks.append(look)
        for message in look.messages(limit):
            yield Found(Envelope.received(message, queue), key=message)

    def release(self, found: Found, copy: Envelope, queue: str) -> None:
        result: list[BaseException | None] = []
        received = Received(found.key, copy, let_go=found.key.ack)
        self._move(received, copy, "", queue, result.append)
        problem = result[0] if result else BrokerError(f"{SHORT}, and may take this one later")
        if problem is not None:
            raise problem
        found.key.ack()

    def close(self) -> None:
        with self._confirms.lock:
            for look in self._looks:
                look.give_back()
            self._looks.clear()
            self._confirms.disconnect(BrokerError("closed"))


def _forget(message: Any) -> None:
    """Make *message*'s acknowledgement local: RabbitMQ knows nothing of it any more."""

    def ack(multiple: bool = False) -> None:
        message._state = "ACK"

    message.ack = ack
