"""RabbitMQ: messages that come back again and again, though they were never started.

What a worker only holds, for its eta or behind others, comes back whenever the worker ends or its
connection is lost. A quorum queue counts that, and at its limit (20 from RabbitMQ 4 on) it destroys
the message without a word. So before that the message is requeued by us: published again, which
counts from the beginning, and what has an eta waits in RabbitMQ instead of here.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from celery.worker import state

from celery_resilience.brokers.base import Delivery
from celery_resilience.messages.envelope import Envelope, seconds_until
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.policy.terms import LONGEST_DELAY
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.source_queue import queue_of

__all__ = ["requeues"]

logger = logging.getLogger("celery_resilience")

_COUNT = "x-delivery-count"
#: How often what has no eta comes back before it is requeued: half of RabbitMQ 4's own limit.
_OFTEN = 10


def requeues(message: Any, c: Any, settler: Settler) -> bool:
    """Whether *message*, delivered to the consumer *c* once more, is requeued at once."""
    headers = message.headers
    times = headers.get(_COUNT) if isinstance(headers, dict) else None
    if not times or not isinstance(times, int):
        return False
    envelope = Envelope.received(message, queue_of(message, c.app))
    try:
        told = envelope.fields()
        name, id_, eta = told["task"], told["id"], told.get("eta")
    except Exception:  # it is no task, or none that can be read: that is seen to elsewhere
        return False
    left = seconds_until(eta, zone=c.app.timezone) or 0.0
    if left > LONGEST_DELAY or id_ in state.revoked or (left < 1 and times < _OFTEN):
        return False
    history = History.loads(envelope.headers.get(HEADER))
    logger.info(
        "%s[%s]: redelivered %d times and not started yet: requeued, due in %.0f s",
        name, id_, times, max(left, 0.0),
    )  # fmt: skip
    delivery = Delivery(
        message, envelope, lambda: message.ack_log_error(logger, c.connection_errors),
        subject=f"{name}[{id_}]", worker=c.hostname,
    )  # fmt: skip
    copy = envelope.with_header(replace(history, queue=envelope.queue).dumps())
    settler.schedule(delivery, copy, left if left >= 1 else 0.0)
    return True
