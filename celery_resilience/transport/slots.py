"""How much a worker takes at a time: what its pool can begin, and little more.

Who takes as many as the prefetch count allows leaves nothing to the idle workers beside it: of
eight tasks that become visible at once it would run all, one after the other. Quick tasks are
different: a pool that had to wait for the broker after each would stand idle most of the time. So
a look also takes as many as this pool has lately shown that it finishes within 50 ms.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

__all__ = ["Pace", "Slots", "most", "prefetch_room"]

#: How much work is taken beyond the free slots, as the time that it takes the pool, in seconds.
_AHEAD = 0.05
#: A message that is finished that soon after it came was a quick one, in seconds: it has waited
#: for those that were taken ahead of it, and has run.
_QUICK = 2 * _AHEAD


def most(wanted: int, slots: int, begun: int, acknowledged: int, quick: int) -> int:
    """How many messages to take.

    *wanted* is what the prefetch count leaves room for, *begun* is how many messages the worker
    has that are not finished, and how many of them were *acknowledged* all the same. *quick* is how
    many were lately acknowledged so soon that they seem to have been quick ones.
    """
    ahead = max(0, quick - acknowledged)
    return max(0, min(wanted, slots + ahead - begun))


def prefetch_room(qos: Any, unlimited: int) -> int:
    """How many messages the prefetch count of *qos* leaves room for; *unlimited* without one."""
    if not qos.can_consume():
        return 0
    if "can_consume" in vars(qos):
        return 1  # worker_disable_prefetch has a say: it counts what was delivered
    room = qos.can_consume_max_estimate()
    return unlimited if room is None else int(room)


class Pace:
    """How many messages a pool finishes in 50 ms, seen by those that it has finished lately."""

    def __init__(self) -> None:
        #: When the messages of the last takes came, by how their delivery tags begin.
        self._came: dict[str, float] = {}
        self._since, self._now, self._before = 0.0, 0, 0

    def came(self, tags: str) -> None:
        """Messages have come whose delivery tags begin with *tags*."""
        now = monotonic()
        while self._came and now - self._came[first := next(iter(self._came))] > _QUICK:
            del self._came[first]
        self._came[tags] = now

    def finished(self, tag: str) -> None:
        """The message with this delivery *tag* was acknowledged."""
        now = monotonic()
        if now - self._came.get(tag[: tag.rfind(".") + 1], -_QUICK) < _QUICK:
            self._turn(now)
            self._now += 1

    def quick(self) -> int:
        """How many quick ones were finished in 50 ms, lately."""
        self._turn(monotonic())
        return max(self._now, self._before)

    def _turn(self, now: float) -> None:
        passed = now - self._since
        if passed >= _AHEAD:
            self._before = self._now if passed < 2 * _AHEAD else 0
            self._since, self._now = now, 0


class Slots:
    """The slots of the pool of *consumer*, Celery's, whose messages come through *channel*."""

    def __init__(self, consumer: Any, channel: Any) -> None:
        from celery.worker import state

        self.pace = Pace()
        self._pool, self._controller = consumer.pool, consumer.controller
        self._channel = channel
        self._reserved, self._active = state.reserved_requests, state.active_requests
        #: Whether the loop comes round when a slot gets free; else it has to look for that.
        self.is_heard: bool = consumer.hub is not None and bool(consumer.pool.uses_semaphore)

    @property
    def number(self) -> int | None:
        """How many tasks run at a time, with those slots that an autoscaler would add; None: the
        pool does not tell."""
        scaler = getattr(self._controller, "autoscaler", None)
        # Until Celery 5.7 a pool of gevent's greenlets tells how many run.
        size = getattr(getattr(self._pool, "_pool", None), "size", None)
        number = getattr(scaler, "max_concurrency", None) or size or self._pool.num_processes
        return max(1, number) if isinstance(number, int) else None

    def room(self, wanted: int, undelivered: int) -> int:
        """How many of the *wanted* messages to take; so many were taken and not delivered yet."""
        slots = self.number
        if slots is None or wanted <= 0:
            return wanted
        quick, qos = self.pace.quick(), self._channel.qos
        all_reserved = len(self._reserved)
        unacknowledged = len(qos._delivered) - len(qos._dirty)
        # At most so many were acknowledged and run; who holds tasks for later has fewer.
        early = max(0, all_reserved - unacknowledged)
        room = most(wanted, slots, all_reserved + undelivered, early, quick)
        if room == wanted:
            return room
        mine, early = self._count()
        if mine >= slots and unacknowledged <= 0 and not self._active:
            mine = 0  # Celery has forgotten to say that they have ended
        return most(wanted, slots, mine + undelivered, early, quick)

    def _count(self) -> tuple[int, int]:
        """How many tasks this worker has taken on and not finished, and how many of these are
        acknowledged. Celery counts those of all workers in a process together."""
        while True:
            try:
                requests = list(self._reserved)
                break
            except RuntimeError:  # a thread of the pool has changed it meanwhile
                continue
        ours, mine, acknowledged = self._channel, 0, 0
        for each in requests:
            channel = each._message.channel
            if channel is ours or getattr(channel, "closed", False):  # or of our last one
                mine += 1
                acknowledged += bool(each.acknowledged)
        return mine, acknowledged
