"""RabbitMQ: what a task rejects, where its queue has a dead-letter exchange of its own.

That exchange was chosen for it: a parking queue, a waiting room. So the message goes
there, as with stock Celery, and no dead letter is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery_resilience.settings import Settings
from celery_resilience.worker.source_queue import queue_of

__all__ = ["goes_to_an_exchange", "tell_of_exchanges"]

logger = logging.getLogger("celery_resilience")

_ARGUMENT = "x-dead-letter-exchange"


def goes_to_an_exchange(request: Any, settings: Settings) -> bool:
    """Whether RabbitMQ is to move what the body of *request* has rejected."""
    message = request._message
    if request.acknowledged or not request.time_start or getattr(message, "_raw", None) is not None:
        return False  # it was acknowledged before, was not rejected, or this is no RabbitMQ
    queue = queue_of(message, request._app)
    if not _has_an_exchange(request._app, queue, settings):
        return False
    logger.info(
        "%s[%s]: rejected: it goes to the dead-letter exchange of %s and is no dead letter",
        request.name, request.id, queue,
    )  # fmt: skip
    return True


def tell_of_exchanges(app: Any, queues: Iterable[str], settings: Settings) -> None:
    """Tell, when a worker starts on *queues*, from which of them rejected messages go elsewhere."""
    named = [queue for queue in sorted(queues) if _has_an_exchange(app, queue, settings)]
    if named:
        logger.warning(
            "what a task of %s rejects goes to the queue's own dead-letter exchange, as with stock "
            'Celery, and is no dead letter; resilience_reject_on_dlx = "letter" makes it one',
            ", ".join(named),
        )


def _has_an_exchange(app: Any, queue: str, settings: Settings) -> bool:
    chosen = settings.reject_on_dlx
    if isinstance(chosen, str):
        declared = getattr(app.amqp.queues.get(queue), "queue_arguments", None) or {}
        return chosen == "exchange" and _ARGUMENT in declared
    return queue in chosen or _has_an_exchange(app, queue, Settings())
