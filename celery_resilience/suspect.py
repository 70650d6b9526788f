"""Messages whose worker has died, and that may have been the cause of it.

The death of a whole worker does not name the culprit: everything it held is delivered again, and
each of these messages is started anew, up to ``max_worker_losses`` times in all. So that innocent
neighbours are not buried with the culprit, only starts are counted, and what has been started in
vain twice runs with no other suspect beside it. A first delivery costs nothing of this.

On Redis a start is written down where the message is held, before its body runs. RabbitMQ has no
such place: there the message is published anew, one higher, and the count is one of redeliveries.
When it is used up the other workers are asked whether only their connections were lost.
What a worker holds and has not started would be counted with the rest: there it is put back before
a suspect starts.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_resilience.brokers.channels import is_alive
from celery_resilience.headers import HEADER
from celery_resilience.history import History
from celery_resilience.poison import ask_before_end, put_back
from celery_resilience.settle import Settler, settler_of

__all__ = [
    "Suspects",
    "acquit",
    "counts_redeliveries",
    "hand_back",
    "is_open",
    "is_unstarted",
    "is_watched",
    "reserved",
    "watch_start",
]

logger = logging.getLogger("celery_resilience")

#: How long a suspect waits for the one before it, in seconds; then it is tried again.
_TURN = 1.0
#: How long what was delivered with a suspect has to arrive, in seconds, and how long, at most, it
#: is waited for that it has been put back.
_MOMENT, _PATIENCE = 0.2, 5.0
#: Set on a message whose redelivery says nothing against it.
_ACQUITTED = "_resilience_acquitted"


class Suspects:
    """The suspects that a worker has started and that have not ended."""

    def __init__(self) -> None:
        self._started: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Those that the pool has: one that is to run alone waits a moment before.
        self._in_pool: weakref.WeakSet[Any] = weakref.WeakSet()
        #: The one that runs alone, and since when, by the monotonic clock.
        self._alone: Callable[[], Any] = lambda: None
        self._since = 0.0

    def start(self, request: Any, *, alone: bool) -> None:
        """*request* is started, *alone* or beside others that are suspected for the first time."""
        self._started.add(request)
        if alone and self._alone() is not request:
            self._alone, self._since = weakref.ref(request), time.monotonic()

    def are_in_the_way_of(self, request: Any, *, alone: bool) -> bool:
        """Whether *request* has to wait: what shall run alone for any, the others for that one."""
        rivals = self._started if alone else {self._alone()} - {None}
        return any(rival is not request and _runs(rival) for rival in list(rivals))

    def hold(self, request: Any) -> bool:
        """Whether the worker has *request*, and has not started it."""
        return request not in self._in_pool and is_unstarted(request)

    def given(self, request: Any) -> None:
        """The pool has *request*."""
        self._in_pool.add(request)

    def waited(self, request: Any) -> float:
        """For how many seconds *request*, which is to run alone, has had its turn."""
        return time.monotonic() - self._since if self._alone() is request else 0.0


def is_open(request: Any) -> bool:
    """Whether the message of *request* is still to be settled."""
    return not (request.acknowledged or request._settled)


def is_unstarted(request: Any) -> bool:
    """Whether the body of *request* has not begun, and nobody has settled it."""
    return is_open(request) and not request.time_start


def _runs(request: Any) -> bool:
    return is_open(request) and state.requests.get(request.id) is request


_suspects: weakref.WeakKeyDictionary[Settler, Suspects] = weakref.WeakKeyDictionary()


def watch_start(request: Any) -> None:
    """See to the start of *request* if its message was delivered before, and never finished."""
    message = request._message
    told = (message.headers or {}).get(HEADER) if isinstance(message.headers, dict) else None
    # A history says so only if there is something to say.
    if _was_redelivered(message) or (isinstance(told, str) and '"starts"' in told):
        # Celery builds a class that overrides this method: only an instance has the last word.
        request.execute_using_pool = partial(_start, request, request.execute_using_pool)
        request._suspected = True
        settler = settler_of(request)
        if settler is not None and counts_redeliveries(settler):
            settler.moves.call_after(0, _wait_outside, request, settler)


def reserved() -> list[Any]:
    """The requests that the worker has taken on and not finished."""
    while True:
        try:
            return list(state.reserved_requests)
        except RuntimeError:  # a thread of the pool has changed it meanwhile
            continue


def acquit(message: Any) -> None:
    """*message* comes again because a connection was lost, and for nothing else."""
    setattr(message, _ACQUITTED, True)


def _was_redelivered(message: Any) -> bool:
    came_again = bool((message.delivery_info or {}).get("redelivered"))
    return came_again and not getattr(message, _ACQUITTED, False)


def counts_redeliveries(settler: Settler) -> bool:
    """Whether the broker can't write down a start."""
    return getattr(settler.moves.broker, "note_start", None) is None


def _suspects_of(settler: Settler) -> Suspects:
    return _suspects.setdefault(settler, Suspects())


def _start(request: Any, execute: Callable[..., Any], pool: Any, **options: Any) -> Any:
    settler = settler_of(request)
    if request._settled:  # it was put back while it waited for a slot, and may be let go by now
        raise TaskRevokedError(request.id)
    if settler is None or request.acknowledged:
        return execute(pool, **options)
    if not is_alive(request._message):
        request.let_be()  # the broker has taken it back, and delivers it again
        raise TaskRevokedError(request.id)
    if request.revoked():
        raise TaskRevokedError(request.id)
    suspects = _suspects_of(settler)
    received = request.received(settler)
    history = History.loads(received.envelope.headers.get(HEADER))
    note = getattr(settler.moves.broker, "note_start", None)
    waited = note is None and _has_waited(request, history)
    begins = not waited and (note is not None or _was_redelivered(request._message))
    limit = settler.settings.max_worker_losses
    later = _counted(history) if begins else history
    if history.elsewhere or later.starts >= limit:
        ask_before_end(request, settler, received, later)
        raise TaskRevokedError(request.id)
    # The first time it is only one of those that were with the culprit; the last is the last.
    alone = later.starts > 1 or later.starts + 1 >= limit
    if suspects.are_in_the_way_of(request, alone=alone):
        # One that was never counted is from now on: else it would come back as anybody's. But it
        # has not been started, and must not be a letter for that.
        marked = note is None or (not alone and later.starts + 1 < limit)
        put_back(request, settler, received, later if marked else history, _TURN)
        raise TaskRevokedError(request.id)
    if waited:
        put_back(request, settler, received, history, 0)
        raise TaskRevokedError(request.id)
    if begins:
        if note is None:
            put_back(request, settler, received, later, 0)
            raise TaskRevokedError(request.id)
        try:
            ours = note(received, received.envelope.with_header(later.dumps()))
        except Exception as exc:  # the broker's fault, not the message's
            state.reserved_requests.discard(request)  # it does not go on if the connection is lost
            name = f"{request.name}[{request.id}]"
            logger.warning("%s: that it is started can't be written down: %r", name, exc)
            settler.moves.start_again(request, _TURN)
            return None
        state.reserved_requests.add(request)
        if not ours:
            state.task_ready(request)  # another worker has it: it must not run here too
            raise TaskRevokedError(request.id)
    suspects.start(request, alone=alone)
    if alone:
        if note is None and not _is_by_itself(request, settler, suspects):
            return None
        logger.warning(
            "%s[%s] is started with no other suspect beside it: %s %d times",
            request.name, request.id,
            "it was delivered again" if note is None else "its worker has died", later.starts,
        )  # fmt: skip
    suspects.given(request)
    return execute(pool, **options)


def _has_waited(request: Any, history: History) -> bool:
    """Whether *request* is a suspect that a worker has held until its turn, with an eta, for its
    broker does not hold it: it is not counted again, for before it starts it is published anew."""
    return bool(history.starts and request.eta)


def _is_by_itself(request: Any, settler: Settler, suspects: Suspects) -> bool:
    """Whether *request* may start now; if not, it is seen to again in a moment.

    Where redeliveries are counted, those in the worker's hands when it dies are counted with the
    culprit: they are put back first, for they come with it.
    """
    for other in reserved():
        if other is not request and is_watched(other) and suspects.hold(other):
            hand_back(other, settler, _TURN)
    waited = suspects.waited(request)
    if waited >= _PATIENCE or (waited >= _MOMENT and not settler.moves.unfinished):
        return True
    settler.moves.start_again(request, _MOMENT)
    return False


def _wait_outside(request: Any, settler: Settler) -> None:
    """Put *request* back if it would wait here for one that runs alone.

    One that waits for its eta has nobody in its way yet, and would lose that.
    """
    suspects, waits = _suspects_of(settler), request in state.reserved_requests
    if waits and suspects.hold(request) and suspects.are_in_the_way_of(request, alone=False):
        hand_back(request, settler, _TURN)


def is_watched(request: Any) -> bool:
    """Whether *request* is a suspect."""
    return getattr(request, "_suspected", False) is True


def hand_back(request: Any, settler: Settler, delay: float) -> None:
    """Put back *request*, which was not started; that it has come again is counted."""
    if not is_alive(request._message):
        return
    received = request.received(settler)
    history = History.loads(received.envelope.headers.get(HEADER))
    if _was_redelivered(request._message) and not _has_waited(request, history):
        history = _counted(history)
    put_back(request, settler, received, history, delay)


def _counted(history: History) -> History:
    """*history*, of a message that was delivered again."""
    suspected = time.time() if history.suspected is None else history.suspected
    return replace(history, starts=history.starts + 1, suspected=suspected)
