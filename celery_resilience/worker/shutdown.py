"""A worker that goes down in good order: none of its messages is counted as redelivered for that.

RabbitMQ calls redelivered what it takes back, as after a crash. So what the worker has received and
not started is requeued before its end, and what a cold shutdown has killed as well. On Redis only
starts are counted: there the start of what was killed is taken back.
"""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from celery.worker import state
from kombu.common import ignore_errors

from celery_resilience.brokers.base import RecordsStarts
from celery_resilience.brokers.ownership import is_alive
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.worker.isolated_runs import is_open, is_unstarted, reserved
from celery_resilience.worker.outcome import KILLED
from celery_resilience.worker.redelivery import counts_redeliveries, requeue_counted
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.source_queue import queue_of

__all__ = ["Unstarted", "ended_with_worker", "remember_killed", "requeue_killed"]

logger = logging.getLogger("celery_resilience")

#: How long a worker that goes down requeues what it has not started, in seconds: who stops it may
#: kill it soon. What was killed with the pool has as long once more.
_BUDGET = 5.0
#: So many are published and then waited for, in seconds.
_AT_ONCE, _CONFIRM = 200, 10.0
#: What service managers and shells send to all of a process group: the worker and its pool.
_SENT_TO_ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
#: With what processes end that were told to by one of them, and that catch it.
_ENDED = (0, *(128 + number for number in _SENT_TO_ALL))

#: What Celery has killed because the worker was told to end.
_killed: WeakKeyDictionary[Settler, list[Any]] = WeakKeyDictionary()


class Unstarted:
    """What a worker has received and not started, where a redelivery of that would be counted."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        #: What there was when the worker began to go down.
        self._requests: list[Any] = []
        #: How many seconds of the budget are left.
        self._left = _BUDGET

    def remember(self, c: Any) -> None:
        """The consumer *c* is about to forget it."""
        self._requests = self._now(c)

    def requeue_waiting(self, c: Any) -> None:
        """The loop has ended, the pool goes on: requeue what waits for a process of *c*'s pool. It
        gets none now, and we may be killed before the pool ends."""
        if not self._requests or c.task_consumer is None:
            return
        # First: for what is requeued RabbitMQ would deliver others. Some are on their way.
        ignore_errors(c, c.task_consumer.cancel)
        self._requests += self._now(c)
        if c.pool.uses_semaphore:
            self._requeue(each for each in self._requests if each._apply_result is None)

    def requeue(self, c: Any) -> None:
        """The pool has ended: requeue all that will not be started now."""
        self._requeue(self._requests + self._now(c))

    def _now(self, c: Any) -> list[Any]:
        with suppress(ConnectionError):  # it was never connected
            if counts_redeliveries(self._settler):
                return _received(c.task_buckets.values())
        return []

    def _requeue(self, requests: Iterable[Any]) -> None:
        if self._left > 0:  # else it has been said
            each_once = {id(request): request for request in requests if is_unstarted(request)}
            self._left -= _requeue(each_once.values(), self._settler, self._left)


def _received(buckets: Iterable[Any]) -> list[Any]:
    """What the worker has received and not started; in *buckets* it waits for its rate limit."""
    held = reserved()
    held += [request for bucket in buckets if bucket for request, _ in list(bucket.contents)]
    return [request for request in held if hasattr(request, "detach") and is_unstarted(request)]


def ended_with_worker(exc: BaseException, settler: Settler) -> bool:
    """Whether a process of the pool has ended, with *exc*, because all of the worker was told to.

    The main process goes on until its tasks are done; its pool has got the same signal. What kills
    for other reasons, as a lack of memory does, is a death in a shutdown too. In a cold one a
    signal handler of Celery's may raise into a body.
    """
    if state.should_terminate:
        return True
    if not settler.pending.loop.ending:
        return False
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        return True
    by_signal = re.search(r"\bsignal (\d+)", str(exc))
    if by_signal:
        return int(by_signal[1]) in _SENT_TO_ALL
    code = re.search(r"\bexitcode (\d+)", str(exc))
    return code is not None and int(code[1]) in _ENDED


def remember_killed(request: Any, settler: Settler) -> None:
    """*request* ran, and ends with the worker: it is not what has ended it."""
    killed = [*_killed.get(settler, ()), request]
    # What was killed because its connection was lost, the broker has taken back already.
    _killed[settler] = [each for each in killed if is_alive(each._message)]


def requeue_killed(settler: Settler) -> None:
    """Requeue, when the pool has ended, what was killed with it; what was acknowledged before its
    body ran is lost."""
    active: list[Any] = [*state.active_requests] if state.should_terminate else []
    for request in active:
        if hasattr(request, "detach") and request.acknowledged and not request._settled:
            settler.outcomes.tell(OutcomeKind.LOST, request.delivery(settler), why=KILLED)
    killed = [request for request in _killed.pop(settler, ()) if is_open(request)]
    if not killed:
        return
    broker = settler.pending.broker
    if not isinstance(broker, RecordsStarts):
        _requeue(killed, settler, _BUDGET)
        return
    for request in killed:
        delivery = request.delivery(settler)
        settler.outcomes.tell(OutcomeKind.REQUEUED, delivery, why=KILLED)
        if not request._redelivered:
            continue
        try:
            broker.record_start(delivery, delivery.envelope)  # as it was before its start
        except Exception as exc:
            name = f"{request.name}[{request.id}]"
            logger.warning("%s: its start stays counted: %r", name, exc)


def _requeue(requests: Iterable[Any], settler: Settler, budget: float) -> float:
    """Requeue *requests*, for *budget* seconds at most; how many seconds it took.

    Their confirms are read on the way: RabbitMQ would stop, and all that is not confirmed in the
    end would be there twice.
    """
    began, failing = time.monotonic(), settler.pending.failing
    left = [request for request in requests if not _goes_with_its_queue(request)]
    for number, request in enumerate(left):
        if settler.pending.failing > failing:
            break  # RabbitMQ is away: to try all of them would only take time
        if time.monotonic() - began >= budget:
            logger.warning(
                "%d messages that were not started are left to RabbitMQ, which redelivers them: to "
                "requeue them takes longer than %g s",
                len(left) - number, _BUDGET,
            )  # fmt: skip
            break
        requeue_counted(request, settler, 0)
        if number % _AT_ONCE == _AT_ONCE - 1:
            settler.pending.drain(_CONFIRM)
    return time.monotonic() - began


def _goes_with_its_queue(request: Any) -> bool:
    """Whether its queue, such as a broadcast's, is deleted when the worker leaves it."""
    queue = request._app.amqp.queues.get(queue_of(request._message, request._app))
    return bool(getattr(queue, "auto_delete", False))
