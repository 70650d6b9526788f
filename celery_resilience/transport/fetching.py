"""When a Redis channel of ours fetches from its queues, what it asks for, and what it acks."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from itertools import count
from time import monotonic, time
from typing import Any

from kombu.transport import redis as _kombu_redis
from kombu.utils.json import dumps
from kombu.utils.scheduling import priority_cycle, round_robin_cycle, sorted_cycle

from celery_resilience.brokers.connections import ANSWER
from celery_resilience.brokers.redis import leases
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.transport.connection import FetchConnection
from celery_resilience.transport.notifications import SAFETY
from celery_resilience.transport.prefetched import Prefetched
from celery_resilience.transport.slots import Slots

_redis: Any = _kombu_redis  # the stubs miss half of it

__all__ = ["FetchingChannel"]

logger = logging.getLogger("celery_resilience")

#: The most that one look takes: messages, and bytes (a single message may be more).
_MESSAGES, _BYTES = 100, 1_000_000
#: The most that one fetch acks.
_LET_GO = 1000
#: How long to wait after the server refused to look, in seconds, and how often to say so.
_REFUSED, _SAY = 1.0, 60.0
#: How often it is seen whether another thread has acknowledged something, in seconds.
_GLANCE = 0.05


class FetchingChannel(_redis.Channel):  # type: ignore[misc]
    """kombu's channel, but that it looks when there is something, and takes and holds at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.fetcher = FetchConnection(self)
        #: The worker that holds what is taken here; None: kombu's own hash, for all workers.
        self.lease_owner: Any = None
        #: What the worker's pool can begin; None: the consumer here is no worker of ours.
        self.slots: Slots | None = None
        #: There may be something to take, and no free slot: there may be no notice of one.
        self.waits_for_slot = False
        #: Whether there are queues to fetch from.
        self.consuming = False
        self._prefetched: deque[Prefetched] = deque()
        self._unheld: set[str] = set()
        self._acknowledged: list[str] = []
        #: What was asked: the queues in their order, how tags begin, what is acknowledged.
        self._question: tuple[list[str], str, list[str]] = ([], "", [])
        #: There may be something to take, and it is not to be fetched before that time.
        self._curious, self._not_before = True, 0.0
        self._looked = self._refused = self._complained = 0.0
        #: Told since the last look was asked for; that look was because of it; it was for safety.
        self._woken = self._vain_if_empty = self._unexpected = False
        #: What was asked is only whether there is something.
        self._glances = False
        #: The connection went while a consumer was cancelled, or other code has closed it.
        self._cut: BaseException | None = None
        #: Of each queue its name as JSON, and its lists, one for each priority.
        self._places: dict[str, tuple[bytes, list[bytes]]] = {}
        self._tags = (f"{uuid.uuid4().hex}.{number}." for number in count(1))
        super().__init__(*args, **kwargs)

    def take_for(self, consumer: Any) -> None:
        """Take from now on what the pool of *consumer*, Celery's, can begin, and little more."""
        self.slots = Slots(consumer, self)

    @property
    def _in_poll(self) -> bool:
        # kombu asks whether its connection may be used for something else (authentication).
        return self.fetcher.asking

    @_in_poll.setter
    def _in_poll(self, value: Any) -> None:
        pass

    def fetch_soon(self) -> None:
        """What the server told on a connection that has gone may have been missed."""
        self._curious, self._not_before = True, 0.0

    def was_replaced(self) -> bool:
        """Whether the connection that fetches was given another socket."""
        return self.fetcher.is_another

    def woken(self) -> float:
        """The server says that there is something; how long to wait before the look, in s."""
        if not self.fetcher.notifications.drain():
            self._start_afresh()
            return 0.0
        self._curious = self._woken = True
        pause = self.fetcher.notifications.pause()
        self._not_before = monotonic() + pause
        return pause

    def idle(self) -> float:
        """How long nothing has to be done here unless something happens, in seconds."""
        if self._prefetched:
            return 0.0
        if not self._room():
            return _GLANCE
        due = self._looked + self._patience
        if self._curious:
            due = min(due, max(self._not_before, self._refused))
        return max(0.0, due - monotonic())

    @property
    def is_told_nothing(self) -> bool:
        """Whether it has to look by itself, and is not doing so."""
        return self.fetcher.notifications.refused and not self.fetcher.asking

    @property
    def _patience(self) -> float:
        notifications = self.fetcher.notifications
        return notifications.every if notifications.refused else SAFETY

    def _room(self) -> int:
        """How many messages may be taken."""
        if not self.qos.can_consume():
            return 0
        room = self.qos.can_consume_max_estimate()
        if "can_consume" in vars(self.qos):
            room = 1  # worker_disable_prefetch has a say: it counts what was delivered
        elif room is None:  # no limit: a loop takes many, a plain consumer one after the other
            room = _MESSAGES if self.connection.cycle.loop is not None else 1
        room = max(0, min(int(room) - len(self._prefetched), _MESSAGES))
        if self.slots is None:
            return room
        free = self.slots.room(room, len(self._prefetched))
        self.waits_for_slot = free == 0 < room and not self.slots.is_heard
        return free

    @property
    def is_full(self) -> bool:
        """Whether nothing can be taken before something ends."""
        return not self._prefetched and self._room() == 0

    def fetch(self) -> bool:
        """Ask for messages if there may be some and there is room; whether that was done.

        What was acknowledged is sent with the same question.
        """
        if self._cut is not None:
            cut, self._cut = self._cut, None
            self._give_up()
            raise ConnectionError(str(cut)) from cut
        if self.fetcher.asking:
            if not self.fetcher.overdue:
                return False
            if not self.fetcher.has_answer():
                self._give_up()
                raise ConnectionError(f"Redis has not answered for {ANSWER:g} s")
            self.answered()  # the loop was busy for that long, and would wait for the socket
            if self.fetcher.asking:
                return True
        now = monotonic()
        if now < self._refused:
            return False
        self.waits_for_slot = False
        late = now - self._looked >= self._patience
        room = self._room() if late or (self._curious and now >= self._not_before) else 0
        if not (room or self._acknowledged):
            return False
        if room:
            self._looked = now
            self._vain_if_empty, self._woken = self._woken, False
            self._unexpected = not self._curious
        # Most looks of who is idle find nothing: it first asks whether there is something.
        idle = self._unexpected or self.fetcher.notifications.in_vain
        self._ask(room, glance=idle and room > 0 and not self._acknowledged)
        return True

    def _give_up(self) -> None:
        """Disconnect. What the question acks, if it is not answered, the next one acks."""
        if self.fetcher.asking:
            self._acknowledged = self._question[2] + self._acknowledged
        self.fetcher.disconnect()

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
        at = time() if self.lease_owner is None else ""
        self._glances = glance
        if glance:
            self._question = queues, tags, []
            self.fetcher.count(lists)
            return
        done, self._acknowledged = self._acknowledged[:_LET_GO], self._acknowledged[_LET_GO:]
        self._question = queues, tags, done
        args = [room, _BYTES, fair, len(queues), tags, at, len(prefix.encode())]
        args += [*self._holds_for(), leases.LEASE, *names, *done]
        keys = *self._held_in(), f"{prefix}{KEYS}takes", f"{prefix}{KEYS}workers"
        try:
            self.fetcher.ask(lua("fetch", __package__), [*keys, *lists], args)
        except BaseException:
            self._acknowledged = done + self._acknowledged
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
        from redis.exceptions import ReadOnlyError, ResponseError

        if not self.fetcher.asking:  # the server has closed the connection
            self.fetcher.disconnect()
            self.fetch_soon()
            return True
        queues, tags, done = self._question
        try:
            answer = self.fetcher.answer()
        except BaseException as exc:
            self._acknowledged = done + self._acknowledged  # twice does no harm
            if isinstance(exc, ReadOnlyError):  # a replica now: the master has to be found
                self.fetcher.disconnect()
                raise ConnectionError(str(exc)) from exc
            if not isinstance(exc, ResponseError):
                raise
            self._curious, self._refused = True, monotonic() + _REFUSED
            if monotonic() - self._complained >= _SAY or not self._complained:
                self._complained = monotonic()
                logger.error("Redis refuses to hand out messages, trying again: %s", exc)
            return False
        if self._glances and answer:
            room = self._room() if self.active_queues else 0
            self._ask(room) if room else self.fetch_soon()
            return True
        more, number, *found = answer or (0, 0)
        if found and self.lease_owner is not None:
            self.lease_owner.taken(number)
        if found and self.slots is not None:
            self.slots.pace.came(tags)
        for n in range(0, len(found), 2):
            queue = queues[(found[n] - 1) % len(queues)]
            tag, is_held = f"{tags}{n // 2 + 1}", not self._is_unheld(queue)
            self._prefetched.append(Prefetched(tag, queue, found[n + 1], is_held, number))
            self._queue_cycle.rotate(queue)
        if queues:
            self._after(bool(more), bool(found))
        return True

    def all_answered(self) -> None:
        """Take in what is on its way, and what comes of it."""
        while self.fetcher.asking:
            self.answered()

    def _after(self, more: bool, found: bool) -> None:
        notifications = self.fetcher.notifications
        if self.lease_owner is not None:
            notifications.workers = self.lease_owner.workers
        if notifications.refused:
            notifications.asked(found)
        elif self._vain_if_empty:
            notifications.looked(found)
        # What was told while the answer was on its way may be newer than the answer.
        self._curious = more or self._woken or notifications.refused
        if more:
            self._not_before = 0.0
        elif notifications.refused:
            self._not_before = self._looked + notifications.every
        elif found and self._unexpected:  # of this it ought to have been told
            self._start_afresh()

    def _start_afresh(self) -> None:
        """Have the server tell on a new connection; what it told before may have been missed."""
        self.fetcher.silence()
        self.fetch_soon()

    def _is_unheld(self, queue: str) -> bool:
        return queue in self._unheld or not self.ack_emulation

    def _held_in(self) -> tuple[str, str]:
        """The hash that what is taken is held in, and kombu's index of it."""
        held = self.unacked_key if self.lease_owner is None else self.lease_owner.key
        return self.global_keyprefix + held, self.global_keyprefix + self.unacked_index_key

    def _holds_for(self) -> tuple[str, int]:
        """The worker that what is taken is held for, and the number of its last take."""
        owner = self.lease_owner
        return ("", 0) if owner is None else (owner.id, owner.last_take)
