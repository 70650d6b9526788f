"""What the worker's main process asks the result store, and tells it, about a request.

Never in its loop: a store that hangs would stop the whole worker. Each of these returns at once;
what follows is done in the loop when the store has answered, or has not for some seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, partial
from threading import RLock
from typing import Any

from celery import states

from celery_resilience.messages.envelope import seconds_until
from celery_resilience.policy.decision import RetryLater
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.worker.background import Aside

__all__ = [
    "ask_for_state",
    "ask_for_success",
    "keeps_states",
    "store_failure",
    "store_outcome",
    "store_revocation",
    "success_is_stored",
]


def keeps_states(backend: Any) -> bool:
    """Whether *backend* can be asked: of ``rpc://`` a look would make a reply queue."""
    return bool(getattr(backend, "as_uri", str)() != "rpc://")


def ask_for_state(request: Any, aside: Aside, then: Callable[[str | None], None]) -> None:
    """*then* gets the state that is stored for *request*; None: it is unknown."""

    def ask() -> Any:
        return request._task.backend.get_task_meta(request.id, cache=False)["status"]

    _ask(request, aside, "reading its state", ask, then)


def ask_for_success(request: Any, aside: Aside, then: Callable[[bool | None], None]) -> None:
    """*then* gets whether the body has succeeded since *request* was received, as far as is
    known."""
    if request.ignore_result or not keeps_states(request._task.backend):
        then(False)
        return
    _ask(request, aside, "reading its state", partial(success_is_stored, request), then)


def success_is_stored(request: Any) -> bool:
    """Whether the result store says that the body has succeeded since *request* was received."""
    try:
        meta = request._task.backend._get_task_meta_for(request.id)
        left = seconds_until(meta["date_done"], request.received_at)
    except Exception:
        return False
    # The same id may have succeeded before, in another run. Nor is it the time of this start:
    # billiard may start it again when the process dies, and a success is stored once.
    return bool(meta["status"] == states.SUCCESS and left is not None and left >= 0)


def store_outcome(
    request: Any, aside: Aside, exc: BaseException, exc_info: Any, outcome: AttemptResult,
    then: Callable[[Any], None],
) -> None:  # fmt: skip
    """Store what was decided here about the attempt of *request* that ended in *exc*."""
    if not isinstance(outcome.decision, RetryLater):
        store_failure(request, aside, exc, then)
        return
    if not request.store_errors:
        then(None)
        return
    cause, context = getattr(exc, "exc", None) or exc, request._context

    def mark() -> None:
        request._task.backend.mark_as_retry(request.id, cause, exc_info.traceback, request=context)

    # Not kept: it might overwrite the result of the retry.
    _ask(request, aside, "storing its state", mark, then)


def store_failure(
    request: Any, aside: Aside, exc: BaseException,
    then: Callable[[Any], None] = lambda answer: None,
) -> None:  # fmt: skip
    """Store that *request* has failed, which calls its errbacks too."""
    context, keeps = request._context, request.store_errors

    def mark() -> None:
        request._task.backend.mark_as_failure(request.id, exc, request=context, store_result=keeps)

    _ask(request, aside, "storing its state", mark, then, keep=True)


def store_revocation(request: Any, aside: Aside, reason: str, then: Callable[[Any], None]) -> None:
    """Store that *request* is revoked."""
    context, keeps = request._context, request.store_errors

    def mark() -> None:
        request._task.backend.mark_as_revoked(
            request.id, reason, request=context, store_result=keeps
        )

    _ask(request, aside, "storing its state", mark, then, keep=True)


def _ask(
    request: Any, aside: Aside, what: str, call: Callable[[], Any], then: Callable[[Any], None],
    keep: bool = False,
) -> None:  # fmt: skip
    def asked() -> Any:
        _asked.add(type(request._task.backend))
        return call()

    aside.ask(f"{request.name}[{request.id}]: {what}", asked, then, keep=keep)


#: The kinds of result stores that were asked in a thread of this process.
_asked: set[type] = set()


def _renew_locks() -> None:
    """A cached property, as a store's client, computes its value under a lock of its class. If the
    thread held it at the fork, it would never be released in the new process."""
    for cls in {each for store in _asked for each in store.__mro__}:
        for found in vars(cls).values():
            if isinstance(found, cached_property) and hasattr(found, "lock"):
                found.lock = RLock()


os.register_at_fork(after_in_child=_renew_locks)
