"""Messages that were redelivered, as after a crash of their worker, and may have been its cause.

:mod:`~celery_resilience.worker.start_plan` says which of them starts, and when; here that is
carried out, by one of two strategies. Redis records a start where the message is held, before its
body runs. RabbitMQ has no such place: there the message is published again with a count of its
redeliveries, and what the worker only holds is requeued before one runs in isolation. A first
delivery costs nothing of this.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_resilience.brokers.base import Delivery, RecordsStarts
from celery_resilience.brokers.ownership import is_alive
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.worker.isolated_runs import IsolatedRuns, reserved
from celery_resilience.worker.poison import ask_before_end, requeue
from celery_resilience.worker.settle import Settler, settler_of
from celery_resilience.worker.start_plan import (
    TURN,
    AskPeers,
    Counting,
    Facts,
    Requeue,
    Start,
    counted,
    plan_start,
)

__all__ = ["counts_redeliveries", "excuse", "requeue_counted", "watch_start"]

logger = logging.getLogger("celery_resilience")

#: How long what was delivered together with a message has to arrive, in seconds, and how long, at
#: most, it is waited for that it has been requeued.
_MOMENT, _PATIENCE = 0.2, 5.0
#: Set on a message whose redelivery has another reason than a crash.
_EXCUSED = "_resilience_excused"


_isolated_runs: weakref.WeakKeyDictionary[Settler, IsolatedRuns] = weakref.WeakKeyDictionary()


def _runs_of(settler: Settler) -> IsolatedRuns:
    return _isolated_runs.setdefault(settler, IsolatedRuns())


def excuse(message: Any) -> None:
    """*message* is redelivered because a connection was lost, and for nothing else."""
    setattr(message, _EXCUSED, True)


def _was_redelivered(message: Any) -> bool:
    redelivered = bool((message.delivery_info or {}).get("redelivered"))
    return redelivered and not getattr(message, _EXCUSED, False)


def counts_redeliveries(settler: Settler) -> bool:
    """Whether the broker can't record a start."""
    return not isinstance(settler.pending.broker, RecordsStarts)


def watch_start(request: Any) -> None:
    """See to the start of *request* if its message was delivered before, and never finished."""
    message = request._message
    told = (message.headers or {}).get(HEADER) if isinstance(message.headers, dict) else None
    # A history says so only if there is something to say.
    if _was_redelivered(message) or (isinstance(told, str) and '"starts"' in told):
        # Celery builds a class that overrides this method: only an instance has the last word.
        request.execute_using_pool = partial(_start, request, request.execute_using_pool)
        request._redelivered = True
        settler = settler_of(request)
        if settler is not None and counts_redeliveries(settler):
            settler.pending.loop.call_after(0, _requeue_in_the_way, request, settler)


# When its turn has come


class _Turn(Enum):
    """What the pool is told."""

    START = auto()
    #: It keeps its slot, and is seen to again.
    LATER = auto()
    #: Its slot is free: the message is settled elsewhere.
    NEVER = auto()


def _start(request: Any, execute: Callable[..., Any], pool: Any, **options: Any) -> Any:
    turn = _turn_of(request)
    if turn is _Turn.NEVER:
        raise TaskRevokedError(request.id)
    return execute(pool, **options) if turn is _Turn.START else None


def _turn_of(request: Any) -> _Turn:
    settler = settler_of(request)
    if request._settled:  # it was requeued while it waited for a slot, and may be acked by now
        return _Turn.NEVER
    if settler is None or request.acknowledged:
        return _Turn.START
    if not is_alive(request._message):
        request.detach()  # the broker has taken it back, and redelivers it
        return _Turn.NEVER
    if request.revoked():
        return _Turn.NEVER
    broker = settler.pending.broker
    if isinstance(broker, RecordsStarts):
        return _carry_out(request, settler, _RecordedStarts(broker))
    return _carry_out(request, settler, _CountedRedeliveries())


def _carry_out(
    request: Any, settler: Settler, strategy: _RecordedStarts | _CountedRedeliveries
) -> _Turn:
    runs, delivery = _runs_of(settler), request.delivery(settler)
    history = History.loads(delivery.envelope.headers.get(HEADER))
    facts = Facts(
        history, time.time(), settler.settings.max_worker_losses,
        redelivered=_was_redelivered(request._message),
        waited=_has_waited(request, history),
        others_run=runs.others_run(request),
        isolated_runs=runs.other_is_isolated(request),
    )  # fmt: skip
    plan = plan_start(facts, strategy.counting)
    if isinstance(plan, AskPeers):
        ask_before_end(request, settler, delivery, plan.history)
        return _Turn.NEVER
    if isinstance(plan, Requeue):
        requeue(request, settler, delivery, plan.history, plan.delay)
        return _Turn.NEVER
    turn = strategy.begin(request, settler, delivery, plan)
    if turn is _Turn.START:
        runs.enter_pool(request)
        if plan.isolated:
            logger.warning(
                "%s[%s]: running in isolation: %s %d times",
                request.name, request.id, strategy.reason, plan.history.crash_redeliveries,
            )  # fmt: skip
    return turn


def _has_waited(request: Any, history: History) -> bool:
    """Whether a worker has held *request* until its turn, by its eta, for its broker does not: it
    is not counted again, for before it starts it is published again."""
    return bool(history.crash_redeliveries and request.eta)


# The two strategies: what they count, why something runs in isolation, what precedes its start


class _RecordedStarts:
    counting, reason = Counting.STARTS, "crashed its worker"

    def __init__(self, broker: RecordsStarts) -> None:
        self._broker = broker

    def begin(self, request: Any, settler: Settler, delivery: Delivery, plan: Start) -> _Turn:
        copy = delivery.envelope.with_header(plan.history.dumps())
        try:
            ours = self._broker.record_start(delivery, copy)
        except Exception as exc:  # the broker's fault, not the message's
            state.reserved_requests.discard(request)  # it does not go on if the connection is lost
            logger.warning(
                "%s[%s]: its start could not be recorded, trying again in %g s: %r",
                request.name, request.id, TURN, exc,
            )  # fmt: skip
            settler.pending.loop.start_again(request, TURN)
            return _Turn.LATER
        state.reserved_requests.add(request)
        if not ours:
            state.task_ready(request)  # another worker has it: it must not run here too
            settler.outcomes.tell(OutcomeKind.NOT_OURS, delivery)
            return _Turn.NEVER
        _runs_of(settler).start(request, isolated=plan.isolated)
        return _Turn.START


class _CountedRedeliveries:
    counting, reason = Counting.REDELIVERIES, "redelivered"

    def begin(self, request: Any, settler: Settler, delivery: Delivery, plan: Start) -> _Turn:
        runs = _runs_of(settler)
        runs.start(request, isolated=plan.isolated)
        if plan.isolated and not _is_by_itself(request, settler, runs):
            return _Turn.LATER
        return _Turn.START


# Where redeliveries are counted: what the worker only holds


def _is_by_itself(request: Any, settler: Settler, runs: IsolatedRuns) -> bool:
    """Whether *request* may start now; if not, it is seen to again in a moment.

    What is in the worker's hands when that dies is counted with the culprit: those that came with
    *request* are requeued first.
    """
    for other in reserved():
        if other is not request and getattr(other, "_redelivered", False) and runs.is_held(other):
            requeue_counted(other, settler, TURN)
    waited = runs.waited(request)
    if waited >= _PATIENCE or (waited >= _MOMENT and not settler.pending.unfinished):
        return True
    settler.pending.loop.start_again(request, _MOMENT)
    return False


def _requeue_in_the_way(request: Any, settler: Settler) -> None:
    """Requeue *request* if it would wait here for one that runs in isolation.

    One that waits for its eta is not in the way of others yet, and would lose that.
    """
    runs, waits = _runs_of(settler), request in state.reserved_requests
    if waits and runs.is_held(request) and runs.other_is_isolated(request):
        requeue_counted(request, settler, TURN)


def requeue_counted(request: Any, settler: Settler, delay: float) -> None:
    """Requeue *request*, which was not started, in *delay* seconds; its redelivery is counted."""
    if not is_alive(request._message):
        return
    delivery = request.delivery(settler)
    history = History.loads(delivery.envelope.headers.get(HEADER))
    if _was_redelivered(request._message) and not _has_waited(request, history):
        history = counted(history, time.time())
    requeue(request, settler, delivery, history, delay)
