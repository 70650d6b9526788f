"""The bootstep that brings all of it into a worker: what is opened, guarded and given back when."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.concurrency.solo import TaskPool as SoloPool
from celery.exceptions import ImproperlyConfigured
from kombu.common import ignore_errors

from celery_resilience.banner import add_to_banner
from celery_resilience.brokers import open_broker
from celery_resilience.brokers.channels import notice_losses
from celery_resilience.brokers.frames import read_on
from celery_resilience.brokers.greenlets import end_with, wait_for_nothing
from celery_resilience.context_key import refuse_stores_without_keys
from celery_resilience.coroutine import refuse_async_bodies
from celery_resilience.covered import warn_of_early_acks, warn_of_uncovered
from celery_resilience.green_signals import GreenSignals
from celery_resilience.guard import Guard
from celery_resilience.holding import Holding
from celery_resilience.internals import refuse_changed_internals
from celery_resilience.jobs import keep_what_runs, keeping_sent
from celery_resilience.leaving import put_back, put_back_killed, unstarted
from celery_resilience.origin import name_the_queue, remember_tags, watch_deletions
from celery_resilience.peers import answer_peers
from celery_resilience.policies import Policies, apply_policies
from celery_resilience.redelivery import InHand
from celery_resilience.rejection import tell_of_exchanges
from celery_resilience.revocation import hear_revocations
from celery_resilience.settings import Settings, dead_letter_queues, refuse_long_names
from celery_resilience.settle import Settler, settler_of
from celery_resilience.signals import warn_of_the_brokers_clock
from celery_resilience.switch import switch_off
from celery_resilience.worker_transport import WorkerTransport, bound_connections

__all__ = ["ResilientConsumer"]

logger = logging.getLogger("celery_resilience")

#: How long a worker that goes down waits for the confirms of its last settlements, in seconds.
_DRAIN = 10.0
#: How often the settler's connection is looked after, in seconds.
_CHECK = 5.0


class ResilientConsumer(bootsteps.StartStopStep):
    """Opens the settler on the worker's connection, and guards the consumer's callbacks."""

    name = "celery_resilience"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(
        self,
        c: Any,
        dead_letter_queue: str | None = None,
        failure_policies: str | None = None,
        max_worker_losses: int | None = None,
        dead_letter_expired: bool | None = None,
        hold_retries: str | None = None,
        redis_transport: str | None = None,
        no_resilience: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(c, **kwargs)
        self.settings = Settings.of(
            c.app,
            dead_letter_queue=dead_letter_queue,
            failure_policies=failure_policies,
            max_worker_losses=max_worker_losses,
            dead_letter_expired=dead_letter_expired,
            hold_retries=hold_retries,
            redis_transport=redis_transport,
            enabled=False if no_resilience else None,
        )
        if self.settings.enabled:
            refuse_changed_internals(c)
        refuse_async_bodies(c.app, c.pool)
        self.settler = Settler(c, self.settings)
        self.holding = Holding(self.settler.moves)
        self.in_hand = InHand(self.settler.moves)
        self.guard = Guard(c, self.settler, self.in_hand)
        self._checks: Any = None
        self._signals: GreenSignals | None = None
        #: It came when the worker consumed already: messages were received without it.
        self._is_late = False
        #: What was received and not started when the worker began to go down.
        self._unstarted: list[Any] = []
        self._notice_losses(c)
        bound_connections(c)
        self.transport = WorkerTransport(c, self.settings)
        self._stay_paused(c)
        self._remember_unstarted(c)
        _set_prefetch_in_the_loop(c)
        if _runs_in_the_loop(c.pool):
            _acknowledge_at_once(c)
            _let_go_before_the_body(c)
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
            self.guard.stand()
            answer_peers(self.settler, self.in_hand.tell)
            hear_revocations()
            warn_of_uncovered(c.app)
            warn_of_early_acks(c.app)
        else:
            # A policy that is wrong must not be in the way of switching all of them off.
            _refuse_to_execute_letters(consumed, {self.settings.queue_for(q) for q in consumed})
            if is_first:
                switch_off(c.app)
            logger.warning("celery_resilience is switched off: stock Celery decides")
        add_to_banner(c, self.settings, self.transport)

    def info(self, c: Any) -> dict[str, Any]:  # type: ignore[override]
        """What ``inspect stats`` says of us, and what this worker has decided so far."""
        told = {"enabled": self.settings.enabled, **self.transport.told(), **self.settler.counts}
        return {"resilience": told}

    def _notice_losses(self, c: Any) -> None:
        """Before Celery forgets what goes on when the connection is lost."""
        forget = c.on_close

        def on_close() -> None:
            self.in_hand.lose(c)
            forget()

        c.on_close = on_close

    def _stay_paused(self, c: Any) -> None:
        """Celery consumes all queues again when it is told of one more."""
        add = c.add_task_queue

        def add_task_queue(*args: Any, **options: Any) -> None:
            add(*args, **options)
            self.settler.moves.consumes_again()

        c.add_task_queue = add_task_queue

    def _remember_unstarted(self, c: Any) -> None:
        """Celery forgets it, when the worker goes down, before any step is told."""
        forget = c.blueprint.on_close

        def on_close() -> None:
            if self.settings.enabled:
                self._unstarted = self._all_unstarted(c)
            with keeping_sent(c.pool):
                forget()

        c.blueprint.on_close = on_close

    def _all_unstarted(self, c: Any) -> list[Any]:
        with suppress(ConnectionError):  # it was never connected
            return unstarted(self.settler, c.task_buckets.values())
        return []

    def start(self, c: Any) -> None:
        """Called at every connection: the consumer's queues are declared, nothing is read yet."""
        self.settler.begin()
        keep_what_runs(c.pool)
        hub = c.hub
        transport = c.connection.transport
        if hasattr(transport, "_callbacks"):  # a virtual transport
            name_the_queue(transport)
        else:
            remember_tags(c.app, c.task_consumer)
            if _runs_in_the_loop(c.pool):
                hub = None  # it would not come to read the confirms before other bodies have run
            if self.settings.enabled and transport.driver_type == "amqp":
                read_on(c.connection.connection)
                notice_losses(c.task_consumer.channel)
                watch_deletions(c.task_consumer.channel)
                if c.hub is None:
                    end_with(c.connection)
                    if c.event_dispatcher and c.event_dispatcher.connection:
                        wait_for_nothing(c.event_dispatcher.connection)
        broker = open_broker(c.connection, hub, self.settings)
        self.settler.moves.use(broker)
        running = {request._message.delivery_tag for request in self.in_hand.running()}
        running |= self.settler.moves.tags
        self.holding.connected(c, broker, running, late=self._is_late)
        self.guard.watch(c.task_consumer.channel)
        if hasattr(c.task_consumer.channel, "take_for"):  # our own Redis transport
            c.task_consumer.channel.take_for(c)
        if self.settings.enabled and hasattr(broker, "prepare"):
            broker.prepare(c.app.amqp.queues.consume_from)
        if c.hub is None and self._checks is None:
            self._checks = c.timer.call_repeatedly(_CHECK, self.settler.moves.check)

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
        self.settler.moves.watch(hub)
        if self._checks is not None:  # of the last connection; Celery 5.7 has cancelled it itself
            self._checks.cancel()
        self._checks = hub.call_repeatedly(_CHECK, self.settler.moves.check)

    def stop(self, c: Any) -> None:
        """The loop has ended, the pool goes on: from now on everything is settled at once."""
        if self._unstarted and c.task_consumer is not None:
            # First: for what is put back RabbitMQ would deliver others. Some are on their way.
            ignore_errors(c, c.task_consumer.cancel)
            self._unstarted += self._all_unstarted(c)
            # What waits for a process gets none now, and we may be killed before the pool ends.
            if c.pool.uses_semaphore:
                waiting = [each for each in self._unstarted if each._apply_result is None]
                put_back(waiting, self.settler)
        self.settler.moves.drain(_DRAIN)

    def shutdown(self, c: Any) -> None:
        """The pool has ended: the last moment before Celery restores what is not let go."""
        if self._signals is not None:
            self._signals.wait()
        if self.settings.enabled:
            put_back(self._unstarted + self._all_unstarted(c), self.settler)
            put_back_killed(self.settler)
        self.settler.moves.drain(_DRAIN)
        self.holding.leave()
        self.settler.moves.close()
        self.settler.end()


def _set_prefetch_in_the_loop(c: Any) -> None:
    """After a reconnect Celery sets the prefetch count in whatever thread acknowledges: two that
    wait on one connection for the broker's answer may wait for ever."""
    restore = c._restore_prefetch_count_after_connection_restart

    def in_the_loop(*args: Any) -> None:
        c.call_soon(restore, *args)

    c._restore_prefetch_count_after_connection_restart = in_the_loop


def _runs_in_the_loop(pool: Any) -> bool:
    return isinstance(pool, SoloPool)


def _acknowledge_at_once(c: Any) -> None:
    """Celery acknowledges when its loop comes round. Where bodies run in the loop, all that was
    prefetched may run before: a task that kills the worker takes along what has ended."""
    later = "call_soon_ack" if hasattr(c, "call_soon_ack") else "call_soon"
    call_soon = getattr(c, later)

    def at_once(call: Any, *args: Any, **options: Any) -> Any:
        if getattr(call, "__name__", "") in ("ack_log_error", "reject_log_error"):
            return call(*args, **options)
        return call_soon(call, *args, **options)

    setattr(c, later, at_once)


def _let_go_before_the_body(c: Any) -> None:
    """What is acknowledged before its body runs has to be let go before: our own transport lets go
    with its next look, and here that comes after the body."""
    apply = c.pool.on_apply

    def on_apply(*args: Any, accept_callback: Any = None, **options: Any) -> Any:
        def accept(*told: Any, **more: Any) -> None:
            channel = c.task_consumer and c.task_consumer.channel
            before = getattr(channel, "acknowledged", 0)
            accept_callback(*told, **more)
            if getattr(channel, "acknowledged", 0) > before:
                channel.let_go_now()

        return apply(*args, accept_callback=accept_callback and accept, **options)

    c.pool.on_apply = on_apply


def _is_rabbitmq(app: Any) -> bool:
    with suppress(Exception), app.connection_for_read() as connection:
        return bool(connection.transport.driver_type == "amqp")
    return False


def _refuse_to_execute_letters(consumed: set[str], lie_in: set[str]) -> None:
    letters = lie_in & consumed
    if letters:
        names = ", ".join(sorted(letters))
        raise ImproperlyConfigured(
            f"this worker is told to consume {names}, where dead letters lie: it would execute "
            "them again. Look at them with 'celery dlq ls', publish them again with "
            "'celery dlq replay', and take the queue off -Q or out of task_queues."
        )
