"""Scheduled retries in Redis that are revoked: found, dropped, and announced as Celery does.

The worker that hears of a revocation drops them itself. Were they put into their queues, a worker
that has not heard of it would run them, and early.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from celery import app as _app
from celery import signals
from celery.utils.functional import maybe_list
from celery.worker import state

from celery_resilience.brokers.base import ListsScheduled
from celery_resilience.brokers.within import within
from celery_resilience.messages.envelope import Envelope
from celery_resilience.worker.background import ANSWER

__all__ = ["drop_scheduled", "has_stamp", "is_revoked", "stamps_of"]

logger = logging.getLogger("celery_resilience")

# The stubs do not know it.
Context: Any = _app.task.Context


def is_revoked(request: Any) -> bool:
    """Whether this worker was told to drop the task of Celery's *request*, by id or by a stamp."""
    return request.id in state.revoked or has_stamp(request._request_dict, state.revoked_stamps)


def stamps_of(headers: object) -> Mapping[str, Any]:
    """What ``revoke_by_stamped_headers`` was told, as a mapping."""
    if isinstance(headers, Mapping):
        return headers
    pairs = [str(each).partition("=") for each in maybe_list(headers) or ()]
    return {name: value for name, _, value in pairs}


def has_stamp(fields: Mapping[str, Any], stamps: Mapping[str, Any]) -> bool:
    """Whether a message with these *fields* bears one of the *stamps*."""
    own = fields.get("stamps")
    if not stamps or not isinstance(own, Mapping):
        return False
    return any(
        value in (maybe_list(stamps[name]) or ())
        for name in fields.get("stamped_headers") or ()
        if name in stamps
        for value in maybe_list(own.get(name)) or ()
    )


def drop_scheduled(
    consumer: Any, broker: ListsScheduled, ids: Iterable[str], stamps: Mapping[str, Any],
    tell: Callable[[Envelope], None] = lambda envelope: None,
) -> int:  # fmt: skip
    """Drop the scheduled retries of the tasks with these *ids*, or that bear one of the *stamps*,
    and *tell* of each; how many this worker has dropped. For another thread than the loop's."""
    dropped, hangs = 0, ""
    wanted: Callable[[Envelope], bool] | None = None
    if stamps:
        wanted = lambda envelope: has_stamp(envelope.headers, stamps)  # noqa: E731
    for found in broker.take_scheduled(set(ids), wanted):
        id_ = found.envelope.properties.get("correlation_id")
        try:
            if hangs:  # it is not waited for once more
                raise TimeoutError(hangs)
            within(ANSWER, partial(_announce, consumer, found.envelope), "the result store")
        except Exception as exc:
            broker.schedule_again(found)
            hangs = str(exc) if isinstance(exc, TimeoutError) else ""
            logger.warning(
                "%s is revoked, but that could not be stored (%r): its retry is left at its time",
                id_, exc,
            )  # fmt: skip
        else:
            dropped += 1
            tell(found.envelope)
            logger.info("%s: dropped: it was revoked while its retry waited", id_)
    return dropped


def _announce(consumer: Any, envelope: Envelope) -> None:
    """As a worker does that receives a task which is revoked: its state, its event, its chord."""
    app = consumer.app
    args, kwargs, embedded = envelope.decoded_arguments() or ((), {}, {})
    fields = {**envelope.headers, **embedded, "args": args, "kwargs": kwargs}
    task = app.tasks.get(fields.get("task"))
    request = Context(
        fields, delivery_info={"exchange": envelope.exchange, "routing_key": envelope.routing_key}
    )
    backend = app.backend if task is None else task.backend
    ignored = request.ignore_result or getattr(task, "ignore_result", False)
    store = not ignored or getattr(task, "store_errors_even_if_ignored", False)
    backend.mark_as_revoked(request.id, "revoked", request=request, store_result=store)
    how = {"terminated": False, "signum": None, "expired": False}
    dispatcher = consumer.event_dispatcher
    if dispatcher is not None and dispatcher.enabled:
        dispatcher.send("task-revoked", uuid=request.id, **how)
    signals.task_revoked.send(sender=task, request=request, **how)
