"""What a worker had in hand when it lost its connection, and is redelivered: a loss is no death.

RabbitMQ delivers again whatever was not acknowledged on a connection that is lost. The worker has
not died, and its bodies go on. So a message that comes back to it is known: if its body runs here
it is not run again, for its end settles the new delivery; if it has ended meanwhile, the new
delivery is settled at once; and if it had not begun, its redelivery is not counted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

from celery.worker import state

from celery_resilience.brokers.ownership import is_alive
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.worker.isolated_runs import is_open, reserved
from celery_resilience.worker.peers import Answer, Name, name_of, names_acknowledged
from celery_resilience.worker.pending import PendingSettlements
from celery_resilience.worker.redelivery import excuse

__all__ = ["InHand"]

logger = logging.getLogger("celery_resilience")

#: How long it is remembered what was in hand, in seconds.
_MEMORY = 3600.0
#: How long before it is noticed a connection may have gone, in seconds.
_NOTICED = 60.0
#: How long an answer is repeated, in seconds: the worker that asks may lose its connection before
#: it has done what follows from it, and then it, or another one, asks again.
_REPEATED = 30.0


class _Had(NamedTuple):
    #: None: it had not begun, and never will with this delivery.
    request: Any
    #: By the monotonic clock.
    at: float


class InHand:
    """What one worker had in hand at the losses of its connection."""

    def __init__(self, pending: PendingSettlements) -> None:
        self._pending = pending
        #: What goes on over losses, from the first of them on.
        self._running: WeakSet[Any] = WeakSet()
        self._had: dict[Name, deque[_Had]] = {}
        #: What succeeded shortly before a loss: its acknowledgement may be lost as well.
        self._succeeded: dict[Name, float] = {}
        #: When the connection was lost; when redeliveries of a message were put down to that; and
        #: when other workers were last told so.
        self._losses: deque[float] = deque(maxlen=1000)
        self._excused: dict[Name, list[float]] = {}
        self._told: dict[Name, float] = {}

    def __bool__(self) -> bool:
        """Whether anything may come back."""
        return bool(self._had)

    def unsettled(self) -> list[Any]:
        """What goes on without a connection, or has ended and is not settled: what becomes of it
        may just be decided."""
        return [
            request
            for request in self._running
            if not (request.acknowledged or request._message.acknowledged)
        ]

    def lose(self, c: Any) -> None:
        """The consumer *c* has lost its connection; Celery has forgotten nothing yet."""
        now = time.monotonic()
        self._forget(now - _MEMORY)
        self._losses.append(now)
        self._running.update(_going_on(c.pool))
        ended = state.successful_requests.as_dict()
        succeeded = names_acknowledged({id_ for id_, at in ended.items() if at > now - _NOTICED})
        self._succeeded |= dict.fromkeys(succeeded, now)
        unsettled = {*self.unsettled()}
        for request in {*unsettled, *_held(c)}:
            if not _is_ours(request) or is_alive(request._message):
                continue
            if request not in unsettled and not _is_open(request):
                continue
            name = name_of(request._message)
            if name is None:
                continue
            had = self._had.setdefault(name, deque())
            if not any(each.request is request for each in had):  # a loss before this one
                had.append(_Had(request if request in self._running else None, now))

    def take_back(self, message: Any, c: Any) -> bool:
        """Whether *message* belongs to a body that runs here, or has run: it must not run again.

        Then the end of that body settles it, or has it settled now.
        """
        name = name_of(message)
        if name is None or not (_redelivered(message) or _starts(message)):
            return False
        had = self._pop(name)
        if had is None:
            return False
        self._excuse(name)
        request = had.request
        if request is not None and self._belongs_to(request, message, c):
            # Its acknowledgement may be lost with this connection as well.
            self._had.setdefault(name, deque()).append(_Had(request, time.monotonic()))
            return True
        excuse(message)
        return False

    def tell(self, name: Name, age: float) -> Answer:
        """What this worker knows of the message *name*, for another one that has it now, and that
        may have been lost here in the last *age* seconds.

        What RabbitMQ has delivered and this worker has not read, or no longer holds, it can't know:
        each loss excuses one redelivery of any message. One that kills workers must not come back
        for ever.
        """
        active = {*self._running, *state.active_requests}
        if any(_is(request, name) and _is_open(request) for request in active):
            return Answer.RUNS
        had = [each.request for each in self._had.get(name, ())]
        if any(r is not None and r.acknowledged and not r._rejected for r in had):
            return Answer.DONE
        if name in self._succeeded:
            return Answer.DONE
        now = time.monotonic()
        if now - self._told.get(name, -_REPEATED) < _REPEATED:
            return Answer.HAD
        losses, excused = (
            sum(at >= now - age for at in times)
            for times in (self._losses, self._excused.get(name, ()))
        )
        # One that is not noticed yet is one, too.
        losses += any(_is(request, name) and _is_open(request) for request in reserved())
        if losses <= excused:
            return Answer.NOTHING
        self._excuse(name)
        self._told[name] = now
        return Answer.HAD

    def _excuse(self, name: Name) -> None:
        self._excused.setdefault(name, []).append(time.monotonic())

    def _belongs_to(self, request: Any, message: Any, c: Any) -> bool:
        ours = request._message
        # What settles the old delivery settles the new one from now on.
        for what in ("channel", "delivery_tag", "delivery_info", "_state", "take"):
            if hasattr(message, what):  # Redis alone numbers what is taken
                setattr(ours, what, getattr(message, what))
        if _is_open(request):
            does = "runs here"
        elif request.acknowledged:
            if request._rejected:
                return False
            does = "is done"
            # That it is done may be on its way to the loop: who comes second has nothing to do.
            ours.ack = partial(_acknowledge_once, ours)
            c.call_soon(ours.ack_log_error, logger, c.connection_errors)
        elif self._pending.take_up(ours) or request.time_start:
            does = "has ended"
        else:
            return False
        logger.info(
            "%s[%s]: redelivered after a lost connection, and %s: it is not run again",
            request.name, request.id, does,
        )  # fmt: skip
        return True

    def _pop(self, name: Name) -> _Had | None:
        had = self._had.get(name, deque())
        for each in had:
            # One that lives was redelivered before, and is remembered should it come once more.
            if each.request is None or not is_alive(each.request._message):
                had.remove(each)
                if not had:
                    del self._had[name]
                return each
        return None

    def _forget(self, before: float) -> None:
        for name, had in [*self._had.items()]:
            kept = deque(each for each in had if each.at > before or _is_open(each.request))
            if kept:
                self._had[name] = kept
            else:
                del self._had[name]
        self._succeeded = {name: at for name, at in self._succeeded.items() if at > before}
        self._excused = {name: at for name, at in self._excused.items() if at[-1] > before}
        self._told = {name: at for name, at in self._told.items() if at > before}


def _going_on(pool: Any) -> set[Any]:
    """What goes on in *pool* without a connection.

    A pool of processes forgets what no process has begun; the others run all that they were given.
    """
    requests = set(state.active_requests)
    if vars(pool).get("flush") is None:  # prefork's own, which Celery calls at such a loss
        # One that waits here, for its turn or for the result store's answer, never begins.
        requests |= {each for each in reserved() if each._apply_result is not None}
    return {each for each in requests if _is_ours(each) and not each._already_cancelled}


def _held(c: Any) -> Iterator[Any]:
    """What the consumer *c* has received and not begun."""
    yield from [*state.reserved_requests, *getattr(state, "scheduled_requests", ())]
    for bucket in c.task_buckets.values():
        yield from [request for request, _ in (list(bucket.contents) if bucket else ())]
    if not hasattr(state, "scheduled_requests"):  # Celery 5.6 and before
        yield from _in_timer(c.timer.queue)


def _in_timer(entries: Iterable[Any]) -> Iterator[Any]:
    for entry in [*entries]:
        call = getattr(entry, "entry", entry)
        yield from (arg for arg in getattr(call, "args", ()) if hasattr(arg, "_message"))


def _is_ours(request: Any) -> bool:
    return hasattr(request, "detach")


def _is(request: Any, name: Name) -> bool:
    return _is_ours(request) and request.id == name.id and name_of(request._message) == name


def _is_open(request: Any) -> bool:
    return request is not None and is_open(request)


def _redelivered(message: Any) -> bool:
    return bool((message.delivery_info or {}).get("redelivered"))


def _starts(message: Any) -> int:
    return History.loads(message.headers.get(HEADER)).crash_redeliveries


def _acknowledge_once(message: Any, multiple: bool = False) -> None:
    if not message.acknowledged:
        type(message).ack(message, multiple=multiple)
