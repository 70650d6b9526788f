"""What a worker does in Redis besides its tasks: it moves due retries and renews its lease.

Any number of workers do it; there is no leader. Each looks now and then, the less often the more
there are. The first of them that asks has the turn for some seconds: it wakes at the very
time that the next retry is due, so that the others need not. What a worker has held itself for a
short time it wakes for too, for no other may know of it yet.
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import time
from typing import Any

from celery_resilience.brokers.connections import pool_of
from celery_resilience.brokers.redis import leases
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases
from celery_resilience.brokers.redis.scheduled import ScheduledRetries

__all__ = ["Housekeeper"]

logger = logging.getLogger("celery_resilience")

#: How often a lone worker looks when nothing tells it to, in seconds.
_IDLE = 1.5
#: How often it looks for workers that hold messages and that no other knows, in seconds.
_SEARCH = 3600.0


class Housekeeper:
    """One worker's share; called by one thread, but for :meth:`expect`."""

    def __init__(self, channel: Any, owner: LeaseOwner) -> None:
        from redis import Redis

        # Not the channel's: it closes with a connection that is lost, and a lease must not.
        self._pool = pool_of(channel)
        client = Redis(connection_pool=self._pool)
        prefix = channel.global_keyprefix or ""
        self._owner = owner
        self._scheduled = ScheduledRetries(client, prefix, channel.sep, channel.priority_steps)
        self._leases = Leases(client, prefix)
        self._workers = 1
        self._renew_at = 0.0
        #: When this worker last said that it is alive, by the monotonic clock.
        self.renewed_at = time.monotonic()
        #: When leases that have run out can be believed, by the monotonic clock.
        self._believe_at: float | None = None
        #: When what this worker has held for a short time is due, by the monotonic clock.
        self._expected: list[float] = []
        #: When to look for workers that no other knows, and where that goes on.
        self._search_at, self._cursor = 0.0, 0
        #: Called when :meth:`run_once` should be called earlier than it had said; and what it said.
        self.wake: Any = None
        self._next = 0.0

    def expect(self, delay: float) -> None:
        """Something is due in *delay* seconds that no look can have seen yet."""
        due = time.monotonic() + delay
        if delay <= 2 * _IDLE * math.sqrt(self._workers):
            heapq.heappush(self._expected, due)
            if due < self._next and self.wake is not None:
                self.wake()

    def run_once(self) -> float:
        """Do what is to be done now; returns in how many seconds to look again.

        Raises whatever the client raises.
        """
        now = time.monotonic()
        if now >= self._renew_at:
            self._renew(now)
        while self._expected and self._expected[0] <= now:
            heapq.heappop(self._expected)
        self._leases.ack_unsent(self._owner)
        moved = self._scheduled.move_due(self._owner.id)
        if moved.stuck:
            logger.error("%d retries are due and can't be moved: %s", moved.stuck, moved.why)
        idle = _IDLE * math.sqrt(self._workers) * random.uniform(0.8, 1.2)
        if moved.next_in is not None and (moved.turn or moved.moved):
            idle = min(idle, moved.next_in)
        self._next = min([now + idle, self._renew_at, *self._expected[:1]])
        return max(0.0, self._next - time.monotonic())

    def close(self) -> None:
        """Give back the connections."""
        self._pool.disconnect()

    def _renew(self, now: float) -> None:
        try:
            self._workers, dead = self._leases.renew(self._owner)
            if self._believe_at is None:
                up = self._leases.up_for()
                known = up is not None and up > 2 * leases.GRACE
                self._believe_at = now + (0 if known else leases.GRACE)
        except Exception:
            self._believe_at = None
            raise
        self.renewed_at = now
        self._renew_at = now + leases.RENEW
        # What kept us from renewing ours may have kept the others too.
        if now < max(self._believe_at, self._owner.late_at + leases.GRACE):
            return
        if now >= self._search_at:
            self._search(now)
        for worker in dead:
            given = self._leases.requeue(worker)
            if given:
                logger.warning("lease of worker %s expired, requeued %d messages", worker, given)
            self._leases.forget(worker, if_dead=True)

    def _search(self, now: float) -> None:
        """Look through some keys, a part at each renewal: a database may have many."""
        from redis.exceptions import ResponseError

        try:
            self._cursor = self._leases.register_unknown(self._cursor)
        except ResponseError as exc:  # an access list may not allow it
            logger.info("cannot look for workers that no other worker knows: %s", exc)
            self._cursor = 0
        if not self._cursor:
            self._search_at = now + _SEARCH
