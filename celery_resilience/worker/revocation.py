"""A revoked task whose retry waits is dropped, though its workers are restarted meanwhile.

Celery remembers what is revoked in its workers' memory. A retry that waits for an hour would come
back to workers that know nothing of it, and run. So when a worker is told, it looks for the retries
in Redis, and drops them. RabbitMQ cannot be searched: there the result backend is told, and
asked when a retry has waited.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from celery import states
from celery.utils.functional import maybe_list
from celery.worker import state
from celery.worker.control import Panel

from celery_resilience.brokers.base import Delivery, ListsScheduled
from celery_resilience.brokers.within import within
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.worker.background import ANSWER
from celery_resilience.worker.result_store import ask_for_state, keeps_states
from celery_resilience.worker.revoked_retries import drop_scheduled, stamps_of
from celery_resilience.worker.settle import Settler, settler_of

__all__ = ["hear_revocations", "recall_revocation"]

logger = logging.getLogger("celery_resilience")


def hear_revocations() -> None:
    """Let this worker look for scheduled retries whenever tasks are revoked; twice is once."""
    for name, word in _COMMANDS.items():
        command = Panel.data.get(name)
        if command is not None and not hasattr(command, "resilience"):
            Panel.data[name] = _hearing(command, word)


#: What tells workers to drop tasks, and the word for which.
_COMMANDS = {"revoke": "task_id", "terminate": "task_id", "revoke_by_stamped_headers": "headers"}


def _hearing(command: Callable[..., Any], word: str) -> Callable[..., Any]:
    def heard(panel: Any, *args: Any, **kwargs: Any) -> Any:
        answer = command(panel, *args, **kwargs)
        told = kwargs.get(word, args[-1] if args else None)
        if word == "headers":
            _fetch(panel, set(), stamps_of(told))
        else:
            _fetch(panel, {str(id_) for id_ in maybe_list(told) or ()}, {})
        return answer

    heard.__dict__.update(getattr(command, "__dict__", {}), resilience=True)
    heard.__doc__, heard.__name__ = command.__doc__, command.__name__
    return heard


def recall_revocation(request: Any, settler: Settler) -> None:
    """Find out whether *request*, which has waited in RabbitMQ, was revoked meanwhile.

    The result store is asked aside, and only when it has answered, or does not, the task is begun.
    """
    headers = request._message.headers or {}
    comes_from_a_level = "x-death" in headers and HEADER in headers
    is_known = request.id in state.revoked or request.ignore_result
    if not comes_from_a_level or is_known or not keeps_states(request._task.backend):
        return
    execute, known, starts = request.execute_using_pool, False, False

    def start(pool: Any, **options: Any) -> Any:
        nonlocal starts
        if known:
            return execute(pool, **options)
        starts = True  # it keeps its slot in the pool
        return None

    def hear(status: str | None) -> None:
        nonlocal known
        known = True
        if status == states.REVOKED:
            state.revoked.add(request.id)
        # One that was lost with its connection meanwhile is delivered again.
        if starts and request in state.reserved_requests:
            settler.pending.loop.start_again(request, 0)

    # Celery builds a class that overrides this method: only an instance has the last word.
    request.execute_using_pool = start
    ask_for_state(request, settler.pending.aside, hear)


def _fetch(panel: Any, ids: set[str], stamps: Mapping[str, Any]) -> None:
    settler = settler_of(panel.app)
    if settler is None or not (ids or stamps):
        return
    broker = settler.pending.broker
    if isinstance(broker, ListsScheduled):
        tell = partial(_tell, settler, panel.consumer.hostname)
        look = partial(drop_scheduled, panel.consumer, broker, ids, stamps, tell)
    else:
        note = partial(_note_in_backend, panel.app, ids)
        look = partial(within, ANSWER, note, "the result store")
    # Many may wait, and the worker's loop must not: in a thread.
    threading.Thread(target=_guarded, args=(look,), daemon=True).start()


def _tell(settler: Settler, worker: str, envelope: Envelope) -> None:
    """Tell that the scheduled retry in *envelope* was dropped."""
    delivery = Delivery(None, envelope, lambda: None, worker=worker)
    settler.outcomes.tell(OutcomeKind.DROPPED, delivery, why="revoked")


def _note_in_backend(app: Any, ids: set[str]) -> int:
    """Store that those of *ids* are revoked which wait for a retry; how many they are."""
    if not keeps_states(app.backend):
        return 0
    waiting = [
        id_ for id_ in ids if app.backend.get_task_meta(id_, cache=False)["status"] == states.RETRY
    ]
    for id_ in waiting:
        app.backend.mark_as_revoked(id_, "revoked")
    return len(waiting)


def _guarded(look: Callable[[], int]) -> None:
    try:
        number = look()
    except Exception as exc:
        logger.warning("cannot look for retries of revoked tasks: %r", exc)
    else:
        if number:
            logger.info("%d scheduled retries of revoked tasks are dropped", number)
