"""What a worker changes in Celery, kombu and py-amqp: each change, why, and in which order.

A patch takes the place of one attribute of one object of this worker's, never of a class, and
calls what was there. No two take the same place, so that the order within a list only says what
comes first in a message's life. ``CONSUMER`` is applied once, when the consumer is made and not yet
connected; ``CONNECTION`` at every connection, when its queues are declared and nothing was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from celery import VERSION
from celery.concurrency.solo import TaskPool as SoloPool

from celery_resilience.brokers.rabbitmq.greenlets import end_with, wait_for_nothing
from celery_resilience.brokers.rabbitmq.pyamqp import (
    notice_losses,
    tell_of_losses,
    tolerate_unreadable_properties,
)
from celery_resilience.settings import Settings
from celery_resilience.worker.banner import add_to_banner
from celery_resilience.worker.jobs import keep_partial_results, keep_what_runs, keeping_sent
from celery_resilience.worker.lost_connection import InHand
from celery_resilience.worker.revocation import hear_revocations
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.shutdown import Unstarted
from celery_resilience.worker.source_queue import name_the_queue, remember_tags, watch_deletions
from celery_resilience.worker.transport import WorkerTransport, bound_connections
from celery_resilience.worker.unprocessable import UnprocessableMessages

__all__ = [
    "CONNECTION",
    "CONSUMER",
    "Ours",
    "Patch",
    "apply_patches",
    "is_rabbitmq_with_hub",
    "is_virtual",
    "runs_in_loop",
]


class Ours(Protocol):
    """What of ours the patches call: the bootstep has it."""

    settings: Settings
    settler: Settler
    in_hand: InHand
    unprocessable: UnprocessableMessages
    unstarted: Unstarted
    transport: WorkerTransport


@dataclass(frozen=True)
class Patch:
    """One change."""

    #: What it takes the place of: ``owner.attribute``, several divided by spaces.
    name: str
    #: What would happen without it.
    why: str
    apply: Callable[[Any, Ours], None]
    #: Which consumers need it.
    where: Callable[[Any], bool] = lambda c: True
    #: With ``--no-resilience`` too: it keeps the worker itself going.
    always: bool = False
    #: The first version of Celery that needs it, and the first that no longer does.
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = ()

    def is_for(self, c: Any, enabled: bool, version: tuple[int, ...] = VERSION[:3]) -> bool:
        """Whether it is applied to the consumer *c*, with that *version* of Celery."""
        fits = self.since <= version and (not self.until or version < self.until)
        return fits and (enabled or self.always) and self.where(c)


def apply_patches(patches: Iterable[Patch], c: Any, ours: Ours) -> None:
    """Apply those of *patches* that the consumer *c* needs."""
    for patch in patches:
        if patch.is_for(c, ours.settings.enabled):
            patch.apply(c, ours)


def runs_in_loop(c: Any) -> bool:
    """Whether bodies run in the loop of the consumer *c*, which does nothing else meanwhile."""
    return isinstance(c.pool, SoloPool)


def is_virtual(c: Any) -> bool:
    """Whether *c* is connected through one of kombu's virtual transports."""
    return hasattr(c.connection.transport, "_callbacks")


def _is_rabbitmq(c: Any) -> bool:
    return not is_virtual(c) and bool(c.connection.transport.driver_type == "amqp")


def _is_rabbitmq_without_hub(c: Any) -> bool:
    return c.hub is None and _is_rabbitmq(c)


def is_rabbitmq_with_hub(c: Any) -> bool:
    """Whether a loop of Celery's reads the connection of *c* to RabbitMQ."""
    return c.hub is not None and c.connection is not None and _is_rabbitmq(c)


# Of the consumer


def _notice_losses(c: Any, ours: Ours) -> None:
    forget = c.on_close

    def on_close() -> None:
        ours.in_hand.lose(c)
        forget()

    c.on_close = on_close


def _stay_paused(c: Any, ours: Ours) -> None:
    add = c.add_task_queue

    def add_task_queue(*args: Any, **options: Any) -> None:
        add(*args, **options)
        ours.settler.pending.pause.forget()

    c.add_task_queue = add_task_queue


def _remember_unstarted(c: Any, ours: Ours) -> None:
    forget = c.blueprint.on_close

    def on_close() -> None:
        if ours.settings.enabled:
            ours.unstarted.remember(c)
        with keeping_sent(c.pool):
            forget()

    c.blueprint.on_close = on_close


def _set_prefetch_in_the_loop(c: Any, ours: Ours) -> None:
    restore = c._restore_prefetch_count_after_connection_restart

    def in_the_loop(*args: Any) -> None:
        c.call_soon(restore, *args)

    c._restore_prefetch_count_after_connection_restart = in_the_loop


def _acknowledge_at_once(name: str) -> Callable[[Any, Ours], None]:
    def apply(c: Any, ours: Ours) -> None:
        call_soon = getattr(c, name)

        def at_once(call: Any, *args: Any, **options: Any) -> Any:
            if getattr(call, "__name__", "") in ("ack_log_error", "reject_log_error"):
                return call(*args, **options)
            return call_soon(call, *args, **options)

        setattr(c, name, at_once)

    return apply


def _acknowledge_before_the_body(c: Any, ours: Ours) -> None:
    apply = c.pool.on_apply

    def on_apply(*args: Any, accept_callback: Any = None, **options: Any) -> Any:
        def accept(*told: Any, **more: Any) -> None:
            channel = c.task_consumer and c.task_consumer.channel
            before = getattr(channel, "acknowledged", 0)
            accept_callback(*told, **more)
            if getattr(channel, "acknowledged", 0) > before:
                channel.ack_now()

        return apply(*args, accept_callback=accept_callback and accept, **options)

    c.pool.on_apply = on_apply


_LATE_ACK = (
    "Celery acknowledges when its loop comes round, after all that was prefetched has run: a task "
    "that kills the worker would take along what has ended"
)

CONSUMER: tuple[Patch, ...] = (
    # While the worker connects
    Patch("Consumer.ensure_connected",
          "a connection would wait for ever, and the loop with it",
          lambda c, ours: bound_connections(c), always=True),
    Patch("Consumer.connection_for_read",
          "kombu's Redis transport takes a message before it records who holds it",
          lambda c, ours: ours.transport.choose(), always=True),
    Patch("WorkController.startup_info",
          "the banner would not mention celery_resilience",
          lambda c, ours: add_to_banner(c, ours.settings, ours.transport), always=True),
    # While it takes messages
    Patch("Consumer.on_unknown_message Consumer.on_unknown_task Consumer.on_invalid_task "
          "Consumer.on_decode_error Consumer.create_task_handler",
          "Celery drops messages that never become a task",
          lambda c, ours: ours.unprocessable.install()),
    Patch("Consumer.add_task_queue",
          "Celery consumes all queues again when it is told of one more, paused or not",
          _stay_paused, always=True),
    Patch("Panel.data",
          "a retry that waits in the broker would not learn that its task is revoked",
          lambda c, ours: hear_revocations()),
    # While bodies run
    Patch("Consumer._restore_prefetch_count_after_connection_restart",
          "after a reconnect Celery sets the prefetch count in whatever thread acknowledges: two "
          "that wait on one connection for the broker's answer may wait for ever",
          _set_prefetch_in_the_loop, always=True),
    Patch("Consumer.call_soon_ack", _LATE_ACK, _acknowledge_at_once("call_soon_ack"),
          where=runs_in_loop, always=True, since=(5, 7)),
    Patch("Consumer.call_soon", _LATE_ACK, _acknowledge_at_once("call_soon"),
          where=runs_in_loop, always=True, until=(5, 7)),
    Patch("TaskPool.on_apply",
          "our Redis transport acknowledges with its next fetch: an early acknowledgement would "
          "come after the body",
          _acknowledge_before_the_body, where=runs_in_loop, always=True),
    # When the connection is lost, or the worker goes down
    Patch("Consumer.on_close",
          "Celery forgets what goes on without a connection: it would run twice",
          _notice_losses, always=True),
    Patch("Blueprint.on_close",
          "Celery forgets what was received and not started before any step is told",
          _remember_unstarted, always=True),
)  # fmt: skip

CONNECTION: tuple[Patch, ...] = (
    Patch("Hub.reset TaskPool.register_with_event_loop TaskPool.stop",
          "after a lost connection Celery takes the rest of a result for the beginning of another",
          lambda c, ours: keep_partial_results(c.hub, c.pool),
          where=lambda c: c.hub is not None, always=True),
    Patch("TaskPool.flush",
          "Celery forgets at a reconnect what its processes run",
          lambda c, ours: keep_what_runs(c.pool), always=True, until=(5, 6)),
    Patch("virtual.Transport._deliver",
          "kombu forgets which queue a message came out of",
          lambda c, ours: name_the_queue(c.connection), where=is_virtual, always=True),
    Patch("messaging.Consumer._active_tags",
          "py-amqp does not tell which queue a message came out of",
          lambda c, ours: remember_tags(c.app, c.task_consumer),
          where=lambda c: not is_virtual(c), always=True),
    Patch("amqp.Connection.on_inbound_frame",
          "one message that py-amqp can't read would end worker after worker",
          lambda c, ours: tolerate_unreadable_properties(c.connection.connection),
          where=_is_rabbitmq),
    Patch("amqp.Channel.open amqp.Channel._callbacks[Close]",
          "a channel that was closed and opened again would look as if nothing had been lost",
          lambda c, ours: notice_losses(c.task_consumer.channel), where=_is_rabbitmq),
    Patch("amqp.Channel._callbacks[Cancel]",
          "what went with its queue would be waited for",
          lambda c, ours: watch_deletions(c.task_consumer.channel), where=_is_rabbitmq),
    Patch("Connection.drain_events",
          "kombu connects again without a word when another greenlet has noticed the loss",
          lambda c, ours: end_with(c.connection), where=_is_rabbitmq_without_hub),
    Patch("Connection.drain_events Connection.heartbeat_check",
          "a lost connection that is noticed outside of the loop would never be consumed again",
          lambda c, ours: tell_of_losses(c.connection), where=is_rabbitmq_with_hub, always=True),
    Patch("event_dispatcher.connection.drain_events",
          "Celery waits a tenth of a second for its events' connection after each message",
          lambda c, ours: _wait_for_no_events(c), where=_is_rabbitmq_without_hub),
)  # fmt: skip


def _wait_for_no_events(c: Any) -> None:
    if c.event_dispatcher and c.event_dispatcher.connection:
        wait_for_nothing(c.event_dispatcher.connection)
