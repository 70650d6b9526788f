"""The bootstep that brings all of it into a worker: what is opened, patched and requeued when."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.exceptions import ImproperlyConfigured

from celery_resilience.brokers.base import Prepares
from celery_resilience.brokers.connect import open_broker
from celery_resilience.brokers.rabbitmq.pyamqp import refuse_lost
from celery_resilience.settings import Settings, dead_letter_queues, refuse_long_names
from celery_resilience.task.async_body import refuse_async_bodies
from celery_resilience.task.context_store import refuse_stores_without_keys
from celery_resilience.task.coverage import warn_of_early_acks, warn_of_uncovered
from celery_resilience.task.disabled import disable
from celery_resilience.task.policies import Policies, apply_policies
from celery_resilience.transport.selection import is_ours
from celery_resilience.worker.celery_patches import (
    CONNECTION,
    CONSUMER,
    apply_patches,
    is_rabbitmq_with_hub,
    is_virtual,
    runs_in_loop,
)
from celery_resilience.worker.expiration import warn_of_the_brokers_clock
from celery_resilience.worker.flags import FLAGS
from celery_resilience.worker.green_signals import GreenSignals
from celery_resilience.worker.internals import refuse_changed_internals
from celery_resilience.worker.lease import WorkerLease
from celery_resilience.worker.lost_connection import InHand
from celery_resilience.worker.peers import answer_peers
from celery_resilience.worker.rejection import tell_of_exchanges
from celery_resilience.worker.settle import Settler, settler_of
from celery_resilience.worker.shutdown import Unstarted, requeue_killed
from celery_resilience.worker.transport import WorkerTransport
from celery_resilience.worker.unprocessable import UnprocessableMessages

__all__ = ["ResilienceStep"]

logger = logging.getLogger("celery_resilience")

#: How long a worker that goes down waits for the confirms of its last settlements, in seconds.
_DRAIN = 10.0
#: How often the settler's connection is looked after, in seconds.
_CHECK = 5.0


class ResilienceStep(bootsteps.StartStopStep):
    """Opens the settler on the worker's connection, and guards the consumer's callbacks."""

    name = "celery_resilience"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, *, no_resilience: bool | None = None, **options: Any) -> None:
        super().__init__(c, **options)
        flags = {name: options.get(name) for name in FLAGS}
        self.settings = Settings.of(c.app, **flags, enabled=False if no_resilience else None)
        if self.settings.enabled:
            refuse_changed_internals(c)
        if c.hub is not None:
            # A process's second worker has, up to kombu 5.5, the hub of its first: with that one's
            # timer, and nobody runs its own.
            c.timer = c.hub.timer
        refuse_async_bodies(c.app, c.pool)
        self.settler = Settler(c, self.settings)
        self.lease = WorkerLease(self.settler.pending)
        self.in_hand = InHand(self.settler.pending)
        self.unprocessable = UnprocessableMessages(c, self.settler, self.in_hand)
        self.unstarted = Unstarted(self.settler)
        self.transport = WorkerTransport(c, self.settings)
        self._checks: Any = None
        self._signals: GreenSignals | None = None
        #: It came when the worker consumed already: messages were received without it.
        self._is_late = False
        consumed = set(c.app.amqp.queues.consume_from)
        # One that is only made must not overrule one that runs.
        is_first = settler_of(c.app) is None
        if self.settings.enabled:
            given = apply_policies(c.app, self.settings) if is_first else Policies(self.settings)
            given.check(c.app.tasks.values())
            _refuse_to_execute_letters(consumed, dead_letter_queues(c.app, self.settings, consumed))
            refuse_stores_without_keys(c.app)
            if _is_rabbitmq(c.app):
                refuse_long_names(c.app, self.settings, consumed)
                warn_of_the_brokers_clock(c.app, self.settings)
                tell_of_exchanges(c.app, consumed, self.settings)
            if getattr(c.pool, "is_green", False):
                self._signals = GreenSignals(c.pool.spawn_n)
                self._signals.install()
            answer_peers(self.settler, self.in_hand.tell)
            warn_of_uncovered(c.app)
            warn_of_early_acks(c.app)
        else:
            # A policy that is wrong must not be in the way of switching all of them off.
            _refuse_to_execute_letters(consumed, {self.settings.queue_for(q) for q in consumed})
            if is_first:
                disable(c.app)
            logger.warning("celery_resilience is switched off: stock Celery decides")
        apply_patches(CONSUMER, c, self)

    def info(self, c: Any) -> dict[str, Any]:  # type: ignore[override]
        """What ``inspect stats`` says of us, and what this worker has decided so far."""
        told = {"enabled": self.settings.enabled, **self.transport.told()}
        return {"resilience": told | self.settler.outcomes.counts}

    def start(self, c: Any) -> None:
        """Called at every connection: the consumer's queues are declared, nothing is read yet."""
        self.settler.begin()
        apply_patches(CONNECTION, c, self)
        # A loop that runs bodies would not come to read the confirms before others have run.
        hub = c.hub if is_virtual(c) or not runs_in_loop(c) else None
        broker = open_broker(c.connection, hub, self.settings)
        self.settler.pending.use(broker)
        running = {request._message.delivery_tag for request in self.in_hand.unsettled()}
        running |= self.settler.pending.tags
        self.lease.connected(c, broker, running, late=self._is_late)
        if is_ours(c.connection):
            self.unprocessable.watch(c.task_consumer.channel)
            c.task_consumer.channel.take_for(c)
        if self.settings.enabled and isinstance(broker, Prepares):
            broker.prepare(c.app.amqp.queues.consume_from)
        if c.hub is None:
            self._check_by(c.timer, self.settler.pending.check)

    def start_late(self, c: Any) -> None:
        """Called once, in place of :meth:`start`, where *c* consumes already, in its loop."""
        self._is_late = True
        try:
            self.start(c)
        finally:
            self._is_late = False
        if c.hub is not None:
            self.register_with_event_loop(c, c.hub)
        c.task_consumer.on_message = c.create_task_handler()  # with what the guard has replaced

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called by workers that have an event loop, before it runs."""
        self.settler.pending.loop.watch(hub)

        def check() -> None:
            if self.settler.pending.loop.looping and is_rabbitmq_with_hub(c):
                refuse_lost(c.connection)
            self.settler.pending.check()

        self._check_by(hub, check)

    def _check_by(self, timer: Any, check: Callable[[], None]) -> None:
        """Have *timer* repeat the *check*; not every Celery keeps what it was told at the last
        connection."""
        if self._checks is not None:
            getattr(self._checks, "entry", self._checks).cancel()  # one of greenlets repeats that
        self._checks = timer.call_repeatedly(_CHECK, check)

    def stop(self, c: Any) -> None:
        """The loop has ended, the pool goes on: from now on everything is settled at once."""
        self.unstarted.requeue_waiting(c)
        self.settler.pending.drain(_DRAIN)

    def shutdown(self, c: Any) -> None:
        """The pool has ended: the last moment before Celery restores what is unacknowledged."""
        if self._signals is not None:
            self._signals.wait()
        if self.settings.enabled:
            self.unstarted.requeue(c)
            requeue_killed(self.settler)
        self.settler.pending.drain(_DRAIN)
        self.lease.leave()
        self.settler.end()


def _is_rabbitmq(app: Any) -> bool:
    with suppress(Exception), app.connection_for_read() as connection:
        return bool(connection.transport.driver_type == "amqp")
    return False


def _refuse_to_execute_letters(consumed: set[str], lie_in: set[str]) -> None:
    letters = lie_in & consumed
    if letters:
        names = ", ".join(sorted(letters))
        raise ImproperlyConfigured(
            f"this worker would consume {names}, where dead letters are kept, and execute them. "
            "Inspect them with 'celery dlq ls', publish them again with 'celery dlq replay', and "
            "remove the queue from -Q or task_queues."
        )
