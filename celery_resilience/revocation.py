"""A revoked task whose retry waits: it comes at once, and is dropped by those who know.

Celery remembers what is revoked in its workers' memory. A retry that waits for an hour would come
back to workers that have been restarted meanwhile, and run. So when workers are told, what waits
is looked for and put into its queue: Celery then drops it in its own way, with its state, its
event and its chord.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from celery_resilience.settle import settler_of

__all__ = ["hear_revocations"]

logger = logging.getLogger("celery_resilience")


def hear_revocations() -> None:
    """Let this worker look for what waits whenever tasks are revoked; twice is once."""
    for name in ("revoke", "terminate"):
        command = Panel.data[name]
        if not hasattr(command, "resilience"):
            Panel.data[name] = _hearing(command)


def _hearing(command: Callable[..., Any]) -> Callable[..., Any]:
    def heard(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = command(state, *args, **kwargs)
        told = kwargs.get("task_id", args[-1] if args else None)
        _fetch(state.app, {str(id_) for id_ in maybe_list(told) or ()})
        return answer

    heard.__dict__.update(getattr(command, "__dict__", {}), resilience=True)
    heard.__doc__, heard.__name__ = command.__doc__, command.__name__
    return heard


def _fetch(app: Any, ids: Iterable[str]) -> None:
    settler = settler_of(app)
    if settler is None:
        return
    fetch = getattr(settler.moves.broker, "fetch_waiting", None)
    if fetch is not None:
        # Many may wait, and the worker's loop must not: in a thread.
        threading.Thread(target=_guarded, args=(fetch, set(ids)), daemon=True).start()


def _guarded(fetch: Callable[[set[str]], int], ids: set[str]) -> None:
    try:
        number = fetch(ids)
    except Exception as exc:
        logger.warning("retries of revoked tasks could not be looked for: %r", exc)
    else:
        if number:
            logger.info("%d waiting retries of revoked tasks are fetched, to be dropped", number)
