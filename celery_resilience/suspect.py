"""Messages whose worker has died, and that may have been the cause of it.

The death of a whole worker does not name the culprit: everything it held is delivered again, and
each of these messages is started anew, up to ``max_worker_losses`` times in all. So that innocent
neighbours are not buried with the culprit, only starts are counted, and what has been started in
vain before runs with no other suspect beside it. A first delivery costs nothing of this.

On Redis a start is written down where the message is held, before its body runs. RabbitMQ has no
such place: there the message is published anew, one higher, and the count is one of redeliveries.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_resilience.brokers import Received
from celery_resilience.decision import Reason
from celery_resilience.envelope import HEADER
from celery_resilience.history import History
from celery_resilience.settle import Settler, settler_of

__all__ = ["Suspects", "watch_start"]

logger = logging.getLogger("celery_resilience")

#: How long a suspect waits for the one before it, in seconds; then it is tried again.
_TURN = 1.0


class Suspects:
    """The suspect that runs in a worker: one at most."""

    def __init__(self) -> None:
        self._running: weakref.ref[Any] | None = None

    def run(self, request: Any) -> None:
        """*request* is started."""
        self._running = weakref.ref(request)

    @property
    def busy(self) -> bool:
        """Whether one runs now."""
        request = None if self._running is None else self._running()
        return (
            request is not None
            and not (request.acknowledged or request._settled)
            and state.requests.get(request.id) is request
        )


_suspects: weakref.WeakKeyDictionary[Settler, Suspects] = weakref.WeakKeyDictionary()


def watch_start(request: Any) -> None:
    """See to the start of *request* if its message was delivered before, and never finished."""
    message = request._message
    told = (message.headers or {}).get(HEADER) if isinstance(message.headers, dict) else None
    # A history says so only if there is something to say.
    if _was_redelivered(message) or (isinstance(told, str) and '"starts"' in told):
        # Celery builds a class that overrides this method: only an instance has the last word.
        request.execute_using_pool = partial(_start, request, request.execute_using_pool)


def _was_redelivered(message: Any) -> bool:
    return bool((message.delivery_info or {}).get("redelivered"))


def _start(request: Any, execute: Callable[..., Any], pool: Any, **options: Any) -> Any:
    settler = settler_of(request._app)
    if settler is None or request.acknowledged:
        return execute(pool, **options)
    if request.revoked():
        raise TaskRevokedError(request.id)
    suspects = _suspects.setdefault(settler, Suspects())
    received = request.received(settler)
    history = History.loads(received.envelope.headers.get(HEADER))
    note = getattr(settler.moves.broker, "note_start", None)
    begins = note is not None or _was_redelivered(request._message)
    limit = settler.settings.max_worker_losses
    if begins and history.starts + 1 >= limit:
        _give_up(request, settler, received, limit)
        raise TaskRevokedError(request.id)
    later = replace(history, starts=history.starts + 1) if begins else history
    if history.starts and suspects.busy:
        _put_back(request, settler, received, history if note is not None else later, _TURN)
        raise TaskRevokedError(request.id)
    if begins:
        if note is None:
            _put_back(request, settler, received, later, 0)
            raise TaskRevokedError(request.id)
        if not note(received, received.envelope.with_header(later.dumps())):
            state.task_ready(request)  # another worker has it: it must not run here too
            raise TaskRevokedError(request.id)
    if history.starts:
        suspects.run(request)
        logger.warning(
            "%s[%s] is started with no other suspect beside it: its worker has died %d times",
            request.name, request.id, history.starts + (note is not None),
        )  # fmt: skip
    return execute(pool, **options)


def _give_up(request: Any, settler: Settler, received: Received, limit: int) -> None:
    request.let_be()
    settler.bury(
        received,
        Reason.WORKER_LOST,
        subject=f"{request.name}[{request.id}]",
        worker=request._hostname,
        rule=f"max_worker_losses={limit}: its worker died whenever it was started",
        queues=(getattr(request._task, "dead_letter_queue", None),),
    )


def _put_back(
    request: Any, settler: Settler, received: Received, history: History, delay: float
) -> None:
    request.let_be()
    copy = received.envelope.with_header(history.dumps())
    settler.put_back(
        received,
        copy,
        delay,
        subject=f"{request.name}[{request.id}]",
        worker=request._hostname,
        task_queue=getattr(request._task, "dead_letter_queue", None),
    )
