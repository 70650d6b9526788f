"""Messages that never become a task: unknown name, unreadable, not a task message.

They are made dead letters here. Stock Celery drops them, and two shapes of them kill or stall
every worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

from celery import signals
from celery.exceptions import InvalidTaskError, NotRegistered

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.rabbitmq.pyamqp import UNREADABLE
from celery_resilience.errors import nearest
from celery_resilience.messages.envelope import Envelope
from celery_resilience.policy.decision import Reason
from celery_resilience.worker.delivery_limit import requeues
from celery_resilience.worker.lost_connection import InHand
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.source_queue import delivery_of, readdress

__all__ = ["UnprocessableMessages", "validate_message"]

logger = logging.getLogger("celery_resilience")


class UnprocessableMessages:
    """Stands between a worker's consumer and what it is handed."""

    def __init__(self, c: Any, settler: Settler, in_hand: InHand) -> None:
        self._c = c
        self._settler = settler
        self._in_hand = in_hand

    def install(self) -> None:
        """Take the place of the consumer's own callbacks."""
        c = self._c
        c.on_unknown_message = MethodType(self._on_unknown_message, c)
        c.on_unknown_task = MethodType(self._on_unknown_task, c)
        c.on_invalid_task = MethodType(self._on_invalid_task, c)
        c.on_decode_error = MethodType(self._on_decode_error, c)
        create = c.create_task_handler

        def create_task_handler(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
            handle = create(*args, **kwargs)

            def on_task_received(message: Any) -> Any:
                if type(message.delivery_info) is not dict:  # on Redis it is the sender's
                    message.delivery_info = {}
                    return self._bury(message, Reason.INVALID, rule="a property of a wrong type")
                try:
                    readdress(message, c.app)
                    if self._in_hand and self._in_hand.take_back(message, c):
                        return None
                    return None if requeues(message, c, self._settler) else handle(message)
                except Exception as exc:
                    if _is_the_connections(exc, c) or _is_the_loops(exc):
                        raise
                    if self._settler.pending.loop.ending:
                        return None  # the pool may have ended: what is not acknowledged goes back
                    return self._bury(message, Reason.INVALID, exc)

            return on_task_received

        c.create_task_handler = create_task_handler

    def _on_unknown_message(self, c: Any, body: Any, message: Any) -> None:
        if UNREADABLE in (message.headers or {}):
            self._bury(message, Reason.UNDECODABLE, rule="its properties can't be read")
        else:
            self._bury(message, Reason.INVALID, rule="neither a name nor an id of a task")
        signals.task_rejected.send(sender=c, message=message, exc=None)

    def _on_invalid_task(self, c: Any, body: Any, message: Any, exc: BaseException) -> None:
        reason = Reason.UNDECODABLE if type(exc).__name__ == "ContentDisallowed" else Reason.INVALID
        self._bury(message, reason, exc)
        signals.task_rejected.send(sender=c, message=message, exc=exc)

    def _on_decode_error(self, c: Any, message: Any, exc: BaseException) -> None:
        self._bury(message, Reason.UNDECODABLE, exc)

    def _on_unknown_task(self, c: Any, body: Any, message: Any, exc: BaseException) -> None:
        rule = _no_such_task(exc, c.app)
        envelope = self._bury(message, Reason.UNREGISTERED, exc, rule)
        try:
            fields = envelope.fields()
            id_, name = fields["id"], fields["task"]
            request = _unknown(name, fields, message.properties or {})
            self._settler.pending.aside.ask(
                f"{name}[{id_}]: storing its state",
                lambda: c.app.backend.mark_as_failure(id_, NotRegistered(name), request=request),
                keep=True,
            )
            if c.event_dispatcher:
                c.event_dispatcher.send(
                    "task-failed", uuid=id_, exception=f"NotRegistered({name!r})"
                )
            signals.task_unknown.send(sender=c, message=message, exc=exc, name=name, id=id_)
        except Exception:
            logger.exception("an unknown task's failure could not be announced")

    def watch(self, channel: Any) -> None:
        """Hear from *channel*, of our own Redis transport, of what lies in a queue and is no
        message at all; kombu's ends the worker."""
        channel.on_undecodable = partial(self._on_undecodable, channel)

    def _on_undecodable(self, channel: Any, taken: Any) -> None:
        delivery = Delivery(
            SimpleNamespace(channel=channel, delivery_tag=taken.tag, take=taken.number),
            Envelope(taken.payload, None, None, headers={}, queue=taken.queue),
            ack=lambda: None,  # it was never delivered: the letter takes its place in the lease
            subject=f"an entry of {taken.queue}",
            worker=self._c.hostname,
        )
        self._settler.bury(delivery, Reason.UNDECODABLE, "it is no message")

    def _bury(
        self, message: Any, reason: Reason, error: BaseException | None = None, rule: str = ""
    ) -> Envelope:
        c = self._c
        headers = message.headers if isinstance(message.headers, dict) else {}
        subject = f"{headers.get('task', 'a message')}[{headers.get('id', '?')}]"
        ack = partial(message.ack_log_error, logger, c.connection_errors)
        delivery = delivery_of(c.app, message, ack, subject, c.hostname)
        rule = rule or f"this worker can't make a task of it ({reason})"
        self._settler.bury(delivery, reason, rule, error=error)
        return delivery.envelope


def _no_such_task(exc: BaseException, app: Any) -> str:
    """What its sender, or the operator of the worker, can do about it."""
    name = str(exc.args[0]) if exc.args else ""
    near = nearest(name, app.tasks, cutoff=0.8)
    if near is not None:
        return f"this worker has no task {name}; did you mean {near}?"
    module = name.rpartition(".")[0]
    which = f"the module that defines it (by its name {module})" if module else "its module"
    return (
        f"this worker has no task {name}: name {which} in Celery(include=[...]) or in imports, or "
        "let app.autodiscover_tasks() find it"
    )


def _unknown(name: str, fields: Any, properties: Any) -> SimpleNamespace:
    """What a result backend wants to know about the request of an unknown task."""
    return SimpleNamespace(
        name=name, task=name, chord=None, errbacks=None, root_id=fields.get("root_id"),
        reply_to=properties.get("reply_to"), correlation_id=properties.get("correlation_id"),
    )  # fmt: skip


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


def validate_message(fields: Mapping[str, Any], payload: Any) -> None:
    """Raise InvalidTaskError for what would end the worker later, or, in a pool of threads, fail
    unseen and never ack the message."""
    args, kwargs, embed = payload
    # Every message comes by here, and nearly all of them look like this.
    if (
        type(args) in _SEQUENCES
        and type(kwargs) is dict
        and type(embed) is dict
        and fields.get("timelimit") in _NO_LIMITS
        and not (fields.get("stamped_headers") or fields.get("stamps"))
    ):
        return
    for holds, what in (
        (_are_limits(fields.get("timelimit") or (None, None)), "timelimit"),
        (_are_stamps(fields), "stamps"),
        (isinstance(args, (list, tuple)), "args"),
        (isinstance(kwargs, dict), "kwargs"),
        (isinstance(embed or {}, dict), "embedded signatures"),
    ):
        if not holds:
            raise InvalidTaskError(f"its {what} are invalid")


_SEQUENCES = (list, tuple)
_NO_LIMITS = ([None, None], (None, None), None)


def _are_limits(limits: Any) -> bool:
    try:
        hard, soft = limits
    except (TypeError, ValueError):
        return False
    return all(each is None or isinstance(each, (int, float)) for each in (hard, soft))


def _are_stamps(fields: Mapping[str, Any]) -> bool:
    names = fields.get("stamped_headers") or []
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return listed and isinstance(fields.get("stamps") or {}, dict)
