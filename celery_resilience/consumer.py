"""The worker's side of the broker: a bootstep that guards what the consumer is handed.

Messages that never become a task (unknown name, unreadable, not a task message) are made dead
letters here; stock Celery drops them, and two shapes of them kill or stall every worker.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import TYPE_CHECKING, Any

from celery import VERSION, bootsteps, signals
from celery.exceptions import ImproperlyConfigured, NotRegistered

from celery_resilience.brokers import Received, open_broker
from celery_resilience.context_key import refuse_stores_without_keys
from celery_resilience.coroutine import refuse_async_bodies
from celery_resilience.decision import Reason
from celery_resilience.envelope import DUE, QUEUE, Envelope
from celery_resilience.facts import ErrorFacts
from celery_resilience.holding import Holding
from celery_resilience.policies import apply_policies
from celery_resilience.revocation import hear_revocations
from celery_resilience.settings import Settings, dead_letter_queues
from celery_resilience.settle import Settler
from celery_resilience.switch import switch_off

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ResilientConsumer", "queue_of"]

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
            enabled=False if no_resilience else None,
        )
        refuse_async_bodies(c.app, c.pool)
        self.settler = Settler(c, self.settings)
        self.holding = Holding()
        self._checks: Any = None
        self.holding.watch(c)
        consumed = set(c.app.amqp.queues.consume_from)
        if self.settings.enabled:
            apply_policies(c.app, self.settings).check(c.app.tasks.values())
            _refuse_to_execute_letters(consumed, dead_letter_queues(c.app, self.settings, consumed))
            refuse_stores_without_keys(c.app)
            self._guard(c)
            hear_revocations()
        else:
            # A policy that is wrong must not be in the way of switching all of them off.
            _refuse_to_execute_letters(consumed, {self.settings.queue_for(q) for q in consumed})
            switch_off(c.app)
            logger.warning("celery_resilience is switched off: stock Celery decides")

    def start(self, c: Any) -> None:
        """Called at every connection: the consumer's queues are declared, nothing is read yet."""
        _keep_what_runs(c.pool)
        transport = c.connection.transport
        if hasattr(transport, "_callbacks"):  # a virtual transport
            _name_the_queue(transport)
        else:
            tags = c.task_consumer._active_tags
            c.app.__dict__["_resilience_tags"] = tags
        broker = open_broker(c.connection, c.hub, self.settings)
        self.settler.moves.use(broker)
        self.holding.connected(c, broker)
        if self.settings.enabled and hasattr(broker, "prepare"):
            broker.prepare(c.app.amqp.queues.consume_from)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called by workers that have an event loop, before it runs."""
        self.settler.moves.watch(hub)
        if self._checks is not None:  # of the last connection; Celery 5.7 has cancelled it itself
            self._checks.cancel()
        self._checks = hub.call_repeatedly(_CHECK, self.settler.moves.check)

    def stop(self, c: Any) -> None:
        """The loop has ended, the pool goes on: from now on everything is settled at once."""
        self.settler.moves.drain(_DRAIN)

    def shutdown(self, c: Any) -> None:
        """The pool has ended: the last moment before Celery restores what is not let go."""
        self.settler.moves.drain(_DRAIN)
        self.holding.leave()
        self.settler.moves.close()

    # Messages that never become a task

    def _guard(self, c: Any) -> None:
        c.on_unknown_message = MethodType(self._on_unknown_message, c)
        c.on_unknown_task = MethodType(self._on_unknown_task, c)
        c.on_invalid_task = MethodType(self._on_invalid_task, c)
        c.on_decode_error = MethodType(self._on_decode_error, c)
        create = c.create_task_handler

        def create_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
            handle = create(*args, **kwargs)

            def on_task_received(message: Any) -> Any:
                _readdress(message, c.app)
                try:
                    return handle(message)
                except Exception as exc:
                    if _is_the_connections(exc, c) or _is_the_loops(exc):
                        raise
                    return self._bury(c, message, Reason.INVALID, exc)

            return on_task_received

        c.create_task_handler = create_task_handler

    def _on_unknown_message(self, c: Any, body: Any, message: Any) -> None:
        self._bury(c, message, Reason.INVALID, rule="neither a name nor an id of a task")
        signals.task_rejected.send(sender=c, message=message, exc=None)

    def _on_invalid_task(self, c: Any, body: Any, message: Any, exc: BaseException) -> None:
        reason = Reason.UNDECODABLE if type(exc).__name__ == "ContentDisallowed" else Reason.INVALID
        self._bury(c, message, reason, exc)
        signals.task_rejected.send(sender=c, message=message, exc=exc)

    def _on_decode_error(self, c: Any, message: Any, exc: BaseException) -> None:
        self._bury(c, message, Reason.UNDECODABLE, exc)

    def _on_unknown_task(self, c: Any, body: Any, message: Any, exc: BaseException) -> None:
        envelope = self._bury(c, message, Reason.UNREGISTERED, exc)
        try:
            fields = envelope.fields()
            id_, name = fields["id"], fields["task"]
            request = _Unknown(name, fields, message.properties or {})
            c.app.backend.mark_as_failure(id_, NotRegistered(name), request=request)
            if c.event_dispatcher:
                c.event_dispatcher.send(
                    "task-failed", uuid=id_, exception=f"NotRegistered({name!r})"
                )
            signals.task_unknown.send(sender=c, message=message, exc=exc, name=name, id=id_)
        except Exception:
            logger.exception("an unknown task's failure could not be announced")

    def _bury(
        self,
        c: Any,
        message: Any,
        reason: Reason,
        error: BaseException | None = None,
        rule: str = "",
    ) -> Envelope:
        envelope = Envelope.received(message, queue_of(message, c.app))
        received = Received(
            message,
            envelope,
            let_go=lambda: message.ack_log_error(logger, c.connection_errors),
        )
        headers = message.headers if isinstance(message.headers, dict) else {}
        self.settler.bury(
            received,
            reason,
            subject=f"{headers.get('task', 'a message')}[{headers.get('id', '?')}]",
            worker=c.hostname,
            error=ErrorFacts.of(error) if error is not None else None,
            rule=rule or f"this worker can't make a task of it ({reason})",
        )
        return envelope


class _Unknown:
    """What a result backend wants to know about the request of a task nobody knows."""

    chord = None
    errbacks = None

    def __init__(self, name: str, fields: Any, properties: Any) -> None:
        self.name = self.task = name
        self.root_id = fields.get("root_id")
        self.reply_to = properties.get("reply_to")
        self.correlation_id = properties.get("correlation_id")


def _is_the_connections(exc: BaseException, c: Any) -> bool:
    """Whether the worker has to reconnect; else it is the message's fault.

    A missing key counts as a connection error in kombu's Redis transport, and so would make
    every worker reconnect for ever, when all that is wrong is one message.
    """
    return isinstance(exc, c.connection_errors) and not isinstance(exc, (LookupError, ValueError))


def _is_the_loops(exc: BaseException) -> bool:
    """Whether a signal handler raised it into whatever was going on, as gevent's do when a
    worker is told to end at once: the message just happened to be in hand."""
    return type(exc).__module__.startswith(("gevent", "eventlet", "greenlet"))


def queue_of(message: Any, app: Any) -> str:
    """The queue that *message* was consumed from."""
    raw = getattr(message, "_raw", None)
    info = message.delivery_info or {}
    if raw is not None and QUEUE in raw:
        return str(raw[QUEUE])
    tag = info.get("consumer_tag")
    for queue, active in app.__dict__.get("_resilience_tags", {}).items():
        if active == tag:
            return str(queue)
    return str(info.get("routing_key") or "")


def _readdress(message: Any, app: Any) -> None:
    """Let a retry that has waited in RabbitMQ look as if it had been sent to its queue.

    A task sees where its message came from, and ``Task.retry`` sends it there again.
    """
    info = message.delivery_info
    if info and info.get("exchange") == DUE:
        info.update(exchange="", routing_key=queue_of(message, app))


def _name_the_queue(transport: Any) -> None:
    """Let a virtual *transport* write down which queue each message came out of.

    kombu knows it at delivery and then forgets it, and the routing key does not tell: a key may
    lead to several queues.
    """
    deliver = type(transport)._deliver

    def _deliver(message: Any, queue: str) -> Any:
        if isinstance(message, dict):
            message[QUEUE] = queue
        return deliver(transport, message, queue)

    transport._deliver = _deliver


def _keep_what_runs(pool: Any) -> None:
    """Celery 5.5 forgets at a reconnect what the children of *pool* run, and never hears how that
    ends: on Redis the message would then lie there for an hour."""
    flush = getattr(pool, "flush", None)
    jobs = getattr(getattr(pool, "_pool", None), "_cache", None)
    if VERSION >= (5, 6) or flush is None or jobs is None or hasattr(flush, "keeps_what_runs"):
        return

    def keeping() -> None:
        running = {number: job for number, job in jobs.items() if job._accepted}
        flush()
        jobs.update(running)

    keeping.__dict__["keeps_what_runs"] = True
    pool.flush = keeping


def _refuse_to_execute_letters(consumed: set[str], lie_in: set[str]) -> None:
    letters = lie_in & consumed
    if letters:
        names = ", ".join(sorted(letters))
        raise ImproperlyConfigured(
            f"this worker is told to consume {names}, where dead letters lie: it would execute "
            "them again. Look at them with 'celery dlq ls', publish them again with "
            "'celery dlq replay', and take the queue off -Q or out of task_queues."
        )
