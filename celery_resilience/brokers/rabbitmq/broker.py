"""RabbitMQ: publish the copy, ack the original when the confirm comes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from celery_resilience.brokers.base import (
    LONGEST_NAME,
    BrokerOptions,
    Browsed,
    Delivery,
    Done,
    Figures,
    NotOurs,
    Unroutable,
)
from celery_resilience.brokers.ownership import Ownership, on_rabbitmq
from celery_resilience.brokers.rabbitmq import queues
from celery_resilience.brokers.rabbitmq.browse import QueueBrowser, mark_of
from celery_resilience.brokers.rabbitmq.connection import SHORT
from celery_resilience.brokers.rabbitmq.delay import (
    USUAL,
    Delay,
    Refused,
    absent,
    forget,
    level_name,
    routing_key,
    waiting_levels,
    warn_once,
)
from celery_resilience.brokers.rabbitmq.figures import figures
from celery_resilience.brokers.rabbitmq.publisher import ConfirmingPublisher
from celery_resilience.brokers.rabbitmq.pyamqp import is_alive
from celery_resilience.brokers.rabbitmq.queues import QueueFacts, fits
from celery_resilience.brokers.rabbitmq.topology import make_at_once
from celery_resilience.brokers.rabbitmq.upkeep import Upkeep
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import ASTRAY

__all__ = ["AmqpBroker"]

logger = logging.getLogger("celery_resilience")


class AmqpBroker:
    """A :class:`~celery_resilience.brokers.base.Broker` on RabbitMQ."""

    redelivers_on_disconnect = True

    def __init__(
        self,
        connection: Any,
        hub: Any = None,
        settings: BrokerOptions | None = None,
        timeout: float | None = None,
    ) -> None:
        self._theirs = connection
        self._publisher = ConfirmingPublisher(connection, hub, timeout)
        self._link = self._publisher.link
        self._settings = settings or BrokerOptions()
        arguments = self._settings.dead_letter_queue_arguments
        self._delay = Delay(str(arguments.get("x-queue-type", "classic")))
        #: How many levels are made for retries of each queue, by its name and their priority.
        self._prepared: dict[tuple[str, object], int] = {}
        self._upkeep = Upkeep(self._link.another, self._prepare_again)
        self._browsers: list[QueueBrowser] = []

    # Moves

    def prepare(self, names: Iterable[str]) -> None:
        """Make, when a worker connects, what retries of its queues will need. Raises nothing."""
        if self._settings.hold_retries == "worker":
            return
        known, queues_ = self._link.declared, list(names)
        with suppress(Exception):  # which queue's fault it is, is said below
            for letters in {self._letters(queue) for queue in queues_}:
                self._make_letters(self._theirs, known, letters)
            make_at_once(self._theirs, known, queues_, USUAL)
        for queue in queues_:
            try:
                self._prepare(self._theirs, known, queue, USUAL)
            except Refused:
                continue  # it has been said
            except Exception as exc:
                logger.warning("%s: the delay for its retries is not declared yet: %r", queue, exc)
        self._upkeep.begin()

    def _prepare_again(self, connection: Any) -> None:
        """Declare again what was deleted meanwhile."""
        prepared, known = dict(self._prepared), set[str]()
        for queue in {queue for queue, _ in prepared}:
            if queues.size(connection, queue) is None:  # with its owner's will, for all we know
                prepared = {key: levels for key, levels in prepared.items() if key[0] != queue}
        for queue, _ in prepared:
            self._make_letters(connection, known, self._letters(queue))
        for (queue, priority), levels in prepared.items():
            with suppress(Refused, Unroutable):
                self._prepare(connection, known, queue, levels, priority)

    def _letters(self, queue: str, *choices: str) -> str:
        """Where letters of messages from *queue* go, or the first of *choices*."""
        name = self._settings.queue_for(queue, *choices)
        if fits(name):
            return name
        warn_once(
            f"letters of {queue} go to {ASTRAY}: the name of their own queue would be longer than "
            f"{LONGEST_NAME} bytes"
        )
        return ASTRAY

    def _make_letters(self, connection: Any, known: set[str], letters: str) -> None:
        if letters not in known:
            forget(known)  # a queue that was deleted has lost its binding too
            queues.make(connection, letters, self._settings.dead_letter_queue_arguments)
            known.add(letters)

    def _prepare(
        self, connection: Any, known: set[str], queue: str, levels: int, priority: object = None
    ) -> None:
        letters = self._letters(queue)
        self._make_letters(connection, known, letters)
        make_at_once(connection, known, [queue], levels, priority)
        self._delay.prepare(connection, known, queue, letters, levels, priority)
        made = self._prepared.get((queue, priority), 0)
        self._prepared[queue, priority] = max(levels, made)

    def schedule(self, delivery: Delivery, copy: Envelope, delay: float, done: Done) -> None:
        queue, settings = delivery.envelope.queue, self._settings
        if delay < 1 or settings.hold_retries == "worker" or not self._delay.takes(queue):
            self._move(delivery, copy.due_in(delay), "", queue, done)
            return
        seconds = math.ceil(delay)
        levels = seconds.bit_length()
        priority = copy.properties.get("priority")
        prepared = False

        def prepare() -> None:
            nonlocal prepared
            self._prepare(self._link.connection, self._link.declared, queue, levels, priority)
            prepared = True

        def over(problem: BaseException | None) -> None:
            if isinstance(problem, Refused):
                self._move(delivery, copy.due_in(delay), "", queue, done)
            elif isinstance(problem, Unroutable) and prepared:
                # It is not the queue that has gone, but a level.
                forget(self._link.declared)
                done(BrokerError(f"{problem}; declaring it again"))
            else:
                done(problem)

        self._move(
            delivery, copy.due(None), level_name(levels - 1, priority),
            routing_key(seconds, queue, self._letters(queue)), over, prepare,
        )  # fmt: skip

    def dead_letter(
        self, delivery: Delivery, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        queue = self._letters(delivery.envelope.queue, queue)
        self._move(delivery, letter, "", queue, done, lambda: self._make(queue, arguments))

    def _move(
        self,
        delivery: Delivery,
        copy: Envelope,
        exchange: str,
        key: str,
        done: Done,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        whose = on_rabbitmq(delivery)
        if not whose.is_ours:
            done(NotOurs(whose.value))
            return
        # What is acknowledged may still be on its way to the loop, which sends it: not forgotten.
        if not whose.has_original and whose is not Ownership.ACKED:
            _forget(delivery.message)

        def over(problem: BaseException | None) -> None:
            if problem is None and whose.is_unusual:
                logger.warning("%s: %s; its copy is published", delivery.subject, whose.value)
            done(problem)

        self._publisher.publish(copy, exchange, key, over, prepare)

    def flush(self, timeout: float) -> None:
        self._publisher.flush(timeout)

    def check(self) -> None:
        """Give up on a connection whose confirms do not come; called now and then by the loop."""
        self._publisher.check()

    def _make(self, queue: str, arguments: Any) -> None:
        """Make *queue* unless it is there, or is known to be."""
        if queue not in self._link.declared:
            queues.make(self._link.connection, queue, arguments)
            self._link.declared.add(queue)

    # For an operator: always without a loop

    def count(self, queue: str) -> int:
        with self._link.opened() as connection:
            return queues.size(connection, queue) or 0

    def facts(self, queue: str) -> QueueFacts | None:
        """What *queue* was declared as; None if it is not there, or that is unknown."""
        with self._link.opened() as connection:
            return queues.facts(connection, queue)

    def absent(self) -> list[str]:
        """What scheduled retries need on their way, and what is not there: for a person."""
        with self._link.opened() as connection:
            return absent(connection)

    def astray(self) -> int:
        """How many messages had nowhere else to go: queue and dead-letter queue have gone."""
        return self.count(ASTRAY)

    def figures(self, queue: str) -> Figures:
        with self._link.opened() as connection:
            return figures(connection, queue, mark_of(queue))

    def letter_queues(self) -> set[str]:
        """Where letters may lie whatever the settings say; RabbitMQ tells no client of others."""
        return {ASTRAY}

    def waiting_levels(self) -> list[tuple[float, int]]:
        """Each level of the delay: its seconds, and how many retries wait in it.

        A retry passes several, the longest first; which are whose, RabbitMQ does not tell.
        """
        with self._link.opened() as connection:
            return waiting_levels(connection)

    def browse(self, queue: str) -> Iterator[Browsed]:
        self._link.open()
        if queues.size(self._link.connection, queue) is None:
            return
        browser = QueueBrowser(self._publisher, queue)
        self._browsers.append(browser)
        for message in browser.messages():
            yield Browsed(Envelope.received(message, queue), key=message)

    def republish(self, found: Browsed, copy: Envelope, queue: str) -> None:
        result: list[BaseException | None] = []
        delivery = Delivery(found.key, copy, ack=found.key.ack)
        self._move(delivery, copy, "", queue, result.append)
        problem = result[0] if result else BrokerError(f"{SHORT}, and may take this one later")
        if problem is not None:
            raise problem
        found.key.ack()

    def remove(self, found: Browsed) -> None:
        if not is_alive(found.key):
            raise NotOurs("its channel is closed: RabbitMQ has taken it back")
        found.key.ack()

    def close(self) -> None:
        with self._link.lock:
            for browser in self._browsers:
                browser.requeue()
            self._browsers.clear()
            self._upkeep.end()
            self._link.close()

    def abandon(self) -> None:
        """Close without a word to RabbitMQ, which does not answer."""
        self._browsers.clear()
        self._link.close()


def _forget(message: Any) -> None:
    """Make *message*'s acknowledgement local: RabbitMQ knows nothing of it any more."""

    def ack(multiple: bool = False) -> None:
        message._state = "ACK"

    message.ack = ack
