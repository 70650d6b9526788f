"""What a Redis channel of ours asks the server for, and what it acks with the same question."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from itertools import count
from time import monotonic, time
from typing import Any, NoReturn

from kombu.transport import redis as _kombu_redis
from kombu.utils.json import dumps
from kombu.utils.scheduling import priority_cycle, round_robin_cycle, sorted_cycle

from celery_resilience.brokers.connections import ANSWER
from celery_resilience.brokers.redis import leases
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.transport.connection import FetchConnection, Question
from celery_resilience.transport.notifications import SAFETY
from celery_resilience.transport.prefetched import Prefetched
from celery_resilience.transport.slots import Slots, prefetch_room
from celery_resilience.transport.timing import Cause, FetchTiming

_redis: Any = _kombu_redis  # the stubs miss half of it

__all__ = ["FetchingChannel"]

logger = logging.getLogger("celery_resilience")

#: The most that one fetch takes: messages, and bytes (a single message may be more).
_MESSAGES, _BYTES = 100, 1_000_000
#: The most that one fetch acks.
_ACKS = 1000
#: How often to log that the server refuses to hand out messages, in seconds.
_LOG_EVERY = 60.0
#: How often to check whether another thread has acked something, in seconds.
_CHECK_ROOM = 0.05


class FetchingChannel(_redis.Channel):  # type: ignore[misc]
    """kombu's channel, except that it fetches when there is something, and leases it at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.fetcher = FetchConnection(self)
        #: The worker that leases what is taken here; None: kombu's own hash, for everybody.
        self.lease_owner: Any = None
        #: What the worker's pool can start; None: the consumer here is no worker of ours.
        self.slots: Slots | None = None
        #: There may be something to take, and no free slot, and no event when there is one.
        self.waits_for_slot = False
        #: Whether there are queues to fetch from.
        self.consuming = False
        self._prefetched: deque[Prefetched] = deque()
        self._unheld: set[str] = set()
        #: The delivery tags that the next question acks.
        self._acks: list[str] = []
        self._question = Question([], "", [])
        self._timing = FetchTiming()
        self._logged_at = -_LOG_EVERY
        #: The connection went while a consumer was cancelled, or another thread has closed it.
        self._cut: BaseException | None = None
        #: Of each queue its name as JSON, and its lists, one for each priority.
        self._places: dict[str, tuple[bytes, list[bytes]]] = {}
        self._tags = (f"{uuid.uuid4().hex}.{number}." for number in count(1))
        super().__init__(*args, **kwargs)

    def take_for(self, consumer: Any) -> None:
        """Take from now on what the pool of *consumer*, Celery's, can start, and little more."""
        self.slots = Slots(consumer, self)

    @property
    def _in_poll(self) -> bool:
        # kombu asks whether its connection may be used for something else (authentication).
        return self.fetcher.asking

    @_in_poll.setter
    def _in_poll(self, value: Any) -> None:
        pass

    def fetch_soon(self) -> None:
        """Fetch though no notification has come: on a lost connection it may have been missed."""
        self._timing.expected()

    def was_replaced(self) -> bool:
        """Whether the connection that fetches has been given another socket."""
        return self.fetcher.is_another

    def woken(self) -> float:
        """The server has sent a notification; how long to wait before the fetch, in seconds."""
        if not self.fetcher.notifications.drain():
            self._start_afresh()
            return 0.0
        pause = self.fetcher.notifications.pause()
        self._timing.notified(monotonic(), pause)
        return pause

    def idle(self) -> float:
        """How long there is nothing to do here unless something happens, in seconds."""
        if self._prefetched:
            return 0.0
        if not self._room():
            return _CHECK_ROOM
        return max(0.0, self._timing.due_at - monotonic())

    @property
    def is_told_nothing(self) -> bool:
        """Whether it gets no notifications, and is not fetching just now."""
        return self.fetcher.notifications.refused and not self.fetcher.asking

    def _room(self) -> int:
        """How many messages may be taken."""
        # Without a prefetch count a loop takes many, a plain consumer one after the other.
        unlimited = _MESSAGES if self.connection.cycle.loop is not None else 1
        taken = len(self._prefetched)
        room = max(0, min(prefetch_room(self.qos, unlimited) - taken, _MESSAGES))
        if self.slots is None:
            return room
        free = self.slots.room(room, taken)
        self.waits_for_slot = free == 0 < room and not self.slots.is_heard
        return free

    @property
    def is_full(self) -> bool:
        """Whether nothing can be taken before something ends."""
        return not self._prefetched and self._room() == 0

    def fetch(self) -> bool:
        """Ask for messages if there may be some and there is room; whether that was done.

        The same question acks what is finished.
        """
        if self._cut is not None:
            cut, self._cut = self._cut, None
            self._give_up(str(cut), cut)
        fetcher, timing = self.fetcher, self._timing
        if fetcher.asking:
            if not fetcher.overdue:
                return False
            if not fetcher.has_answer():
                self._give_up(f"Redis has not answered for {ANSWER:g} s")
            self.answered()  # the loop was busy for that long, and would wait for the socket
            if fetcher.asking:
                return True
        now = monotonic()
        if now < timing.refused_until:
            return False
        self.waits_for_slot = False
        room = self._room() if timing.is_due(now) else 0
        if not (room or self._acks):
            return False
        # Most fetches of an idle worker find nothing: it first asks whether there is something.
        idle = timing.cause is Cause.SAFETY or fetcher.notifications.in_vain
        self._ask(room, glance=idle and room > 0 and not self._acks)
        if room:
            timing.asked(now, SAFETY)
        return True

    def _give_up(self, why: str, cause: BaseException | None = None) -> NoReturn:
        """Disconnect. Acks of a question that is not answered go with the next one."""
        if self.fetcher.asking:
            self._acks = self._question.acks + self._acks
        self.fetcher.disconnect()
        raise ConnectionError(why) from cause

    def _ask(self, room: int, glance: bool = False) -> None:
        cycle = type(self._queue_cycle)
        if cycle not in (round_robin_cycle, priority_cycle, sorted_cycle):
            room = min(room, 1)  # a user's own order
        prefix = self.global_keyprefix
        queues = self._queue_cycle.consume(len(self.active_queues)) if room else []
        places = [self._place(queue) for queue in queues]
        lists = [lists[n] for n in range(len(self.priority_steps)) for _, lists in places]
        names = [
            b"" if self._is_unheld(queue) else name
            for queue, (name, _) in zip(queues, places, strict=True)
        ]
        tags, fair = next(self._tags), int(cycle is round_robin_cycle)
        if glance:
            self._question = Question(queues, tags, [], True)
            self.fetcher.count(lists)
            return
        acks, self._acks = self._acks[:_ACKS], self._acks[_ACKS:]
        self._question = Question(queues, tags, acks)
        owner = self.lease_owner
        at, *lessee = (time(), "", 0) if owner is None else ("", owner.id, owner.last_take)
        args = [room, _BYTES, fair, len(queues), tags, at, len(prefix.encode())]
        args += [*lessee, leases.LEASE, *names, *acks]
        keys = *self._held_in(), f"{prefix}{KEYS}takes", f"{prefix}{KEYS}workers"
        try:
            self.fetcher.ask(lua("fetch", __package__), [*keys, *lists], args)
        except BaseException:
            self._acks = acks + self._acks
            raise

    def _place(self, queue: str) -> tuple[bytes, list[bytes]]:
        """The name of *queue* as JSON, and its lists, one for each priority."""
        place = self._places.get(queue)
        if place is None:
            lists = [self._q_for_pri(queue, step) for step in self.priority_steps]
            place = (
                dumps(queue).encode(),
                [f"{self.global_keyprefix}{each}".encode() for each in lists],
            )
            self._places[queue] = place
        return place

    def answered(self) -> bool:
        """Take in what the server has answered, and wait for it if it is not here yet; it may be
        asked again at once. False if it has refused to answer."""
        if not self.fetcher.asking:  # the server has closed the connection
            self.fetcher.disconnect()
            self.fetch_soon()
            return True
        question = self._question
        try:
            answer = self.fetcher.answer()
        except BaseException as exc:
            self._acks = question.acks + self._acks  # twice does no harm
            if not isinstance(exc, self.ResponseError):
                raise
            self._refused(exc)
            return False
        if question.is_glance and answer:
            room = self._room() if self.active_queues else 0
            self._ask(room) if room else self.fetch_soon()
            return True
        more, number, *found = answer or (0, 0)
        if found:
            self._take_in(question, number, found)
        if question.queues:
            self._fetched(bool(more), bool(found))
        return True

    def _refused(self, exc: Exception) -> None:
        from redis.exceptions import ReadOnlyError

        if isinstance(exc, ReadOnlyError):  # a replica now: the master has to be found
            self.fetcher.disconnect()
            raise ConnectionError(str(exc)) from exc
        now = monotonic()
        self._timing.refused(now)
        if now - self._logged_at >= _LOG_EVERY:
            self._logged_at = now
            logger.error("Redis refuses to hand out messages, trying again: %s", exc)

    def _take_in(self, question: Question, number: int, found: list[Any]) -> None:
        """Keep for their consumers what was *found*, list after message, in this take."""
        queues, tags = question.queues, question.tags
        if self.lease_owner is not None:
            self.lease_owner.taken(number)
        if self.slots is not None:
            self.slots.pace.came(tags)
        for n in range(0, len(found), 2):
            queue = queues[(found[n] - 1) % len(queues)]
            tag, is_held = f"{tags}{n // 2 + 1}", not self._is_unheld(queue)
            self._prefetched.append(Prefetched(tag, queue, found[n + 1], is_held, number))
            self._queue_cycle.rotate(queue)

    def all_answered(self) -> None:
        """Take in what is on its way, and what follows from it."""
        while self.fetcher.asking:
            self.answered()

    def _fetched(self, more: bool, found: bool) -> None:
        notifications, timing = self.fetcher.notifications, self._timing
        if self.lease_owner is not None:
            notifications.workers = self.lease_owner.workers
        if notifications.refused:
            notifications.asked(found)
            timing.answered(more, notifications.every)
            return
        if timing.asked_for is Cause.TOLD:
            notifications.looked(found)
        timing.answered(more, None)
        if found and not more and timing.asked_for is Cause.SAFETY:
            self._start_afresh()  # of this it ought to have been told

    def _start_afresh(self) -> None:
        """Get notifications on a new connection; what came before may have been missed."""
        self.fetcher.silence()
        self.fetch_soon()

    def _is_unheld(self, queue: str) -> bool:
        return queue in self._unheld or not self.ack_emulation

    def _held_in(self) -> tuple[str, str]:
        """The hash of unacked messages, and kombu's index of it."""
        held = self.unacked_key if self.lease_owner is None else self.lease_owner.key
        return self.global_keyprefix + held, self.global_keyprefix + self.unacked_index_key
