"""What a worker of ours holds of a Redis broker, and how that is requeued when it dies.

kombu keeps what is delivered and not acknowledged in one hash for all workers, and restores what
has lain there for an hour: a dead worker's messages too late, and a living one's too early. Here
each worker has a hash of its own, and a lease: what it holds is its own for as long as it says
that it is alive, however long a task runs, and requeued within seconds after it has died.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_resilience.brokers.redis.scripts import KEYS, lua

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["GRACE", "LEASE", "RENEW", "LeaseOwner", "Leases", "Left", "plain_client"]

logger = logging.getLogger("celery_resilience")

#: How long a worker counts as alive after it has said so, in seconds, and how often it does.
LEASE, RENEW = 30.0, 5.0
#: After an outage all leases have run out: how long the others are given to come back.
GRACE = 10.0
#: How long the takes of a worker that was taken for dead are remembered, in seconds.
_REMEMBER = 86400.0
#: A script's answer: the server does not know any more that this worker has held a message.
_FORGOTTEN = 2


class LeaseOwner:
    """One worker, as the owner of a lease; it keeps its name over reconnections."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        #: The hash, without the connection's prefix: delivery tag to list and payload.
        self.key = f"{KEYS}held:{self.id}"
        #: When its lease was last renewed late, by the monotonic clock.
        self.late_at = -math.inf
        #: The tags acknowledged when their connection had gone: the next one sends them.
        self.unsent: list[str] = []
        #: The number of its last take, as the server has told it.
        self.last_take = 0
        #: How many workers there are, as its lease was told when it was last renewed.
        self.workers = 1
        #: What was neither acknowledged nor settled when its channel closed, by its tag.
        self.left: dict[str, Left] = {}
        self._warned = False

    def taken(self, number: int) -> None:
        """Note that a take had this *number*; 0: the server could not count it."""
        if number:
            self.last_take = number
        elif not self._warned:
            self._warned = True
            logger.warning(
                "fetches of this worker can't be counted (HINCRBY, HSET %stakes; ZADD %sworkers): "
                "a message that Redis forgets, as in a failover, is lost if it fails", KEYS, KEYS,
            )  # fmt: skip


class Left(NamedTuple):
    """A message that a worker has in its memory, as it would be recorded where it is held."""

    #: The number of the take that it came with.
    number: int
    #: Its list, a line end, and the message.
    value: bytes


def plain_client(channel: Any, pool: Any = None, *, single: bool = False) -> Redis:
    """A client on the connections of *pool*, by default *channel*'s own, that adds no prefix to any
    key: kombu's adds it to some commands and some keys only. A *single* one keeps its connection,
    for one command at a time."""
    from redis import Redis

    client = Redis(connection_pool=pool or channel.pool, single_connection_client=single)
    if single and not hasattr(client, "single_connection_lock"):  # an older redis-py
        _let_one_command_wait_for_the_other(client)
    return client


def _let_one_command_wait_for_the_other(client: Any) -> None:
    execute, lock = client.execute_command, threading.Lock()

    def execute_command(*args: Any, **options: Any) -> Any:
        with lock:
            return execute(*args, **options)

    client.execute_command = execute_command


class Leases:
    """The leases in one broker, and what is held under them."""

    def __init__(self, client: Redis, prefix: str) -> None:
        self._client: Any = client  # its types allow for what only other settings bring
        self._prefix = prefix
        self._workers = f"{prefix}{KEYS}workers"
        self._takes = f"{prefix}{KEYS}takes"
        #: Since when this looks on, by the monotonic clock.
        self._since = time.monotonic()
        self._renew_lease = client.register_script(lua("renew_lease"))
        self._requeue = client.register_script(lua("requeue"))
        self._forget_worker = client.register_script(lua("forget_worker"))

    def renew(self, owner: LeaseOwner) -> tuple[int, list[str]]:
        """Say that *owner* is alive; how many are, and those whose lease has run out."""
        count, late, *dead = self._renew_lease(keys=[self._workers], args=[owner.id, LEASE])
        owner.workers = int(count)
        if late:
            owner.late_at = time.monotonic()
        return owner.workers, [_text(name) for name in dead]

    def ack_unsent(self, owner: LeaseOwner) -> None:
        """Acknowledge what *owner* could not acknowledge when it was done."""
        tags = owner.unsent[:]
        if tags:
            self._client.hdel(self._prefix + owner.key, *tags)
            for tag in tags:
                with suppress(ValueError):  # another thread has acknowledged it as well
                    owner.unsent.remove(tag)

    def forget(self, worker: str, *, if_dead: bool = False) -> bool:
        """Forget *worker*; not, and False, if it still holds something."""
        dead = f"{self._prefix}{KEYS}dead"
        keys = [self._workers, self._hash(worker), self._takes, dead]
        args = [worker, "1" if if_dead else "0", _REMEMBER]
        return bool(self._forget_worker(keys=keys, args=args))

    def workers(self) -> dict[str, float]:
        """Every worker that is known, and for how many more seconds it counts as alive."""
        seconds, micros = self._client.time()
        now = seconds + micros / 1e6
        rows = self._client.zrange(self._workers, 0, -1, withscores=True)
        return {_text(name): float(until) - now for name, until in rows}

    def orphans(self, over: float = 0.0) -> dict[str, int]:
        """The workers whose lease is *over* for so many seconds, or that have none though they hold
        something, and how many messages each holds; none soon after the server's start, when
        all of them have run out. For an operator: it looks through all keys of the database.

        Where the server does not tell since when it is up, those of whom that is still true after
        a wait in which any living worker would have renewed its lease.
        """
        up = self.up_for()
        if up is not None and up < 2 * GRACE:
            return {}
        dead = self._dead(over)
        if dead and up is None:
            time.sleep(max(0.0, self._since + GRACE - time.monotonic()))
            dead &= self._dead(over)
        held = {worker: self.held(worker) for worker in dead}
        return {worker: number for worker, number in held.items() if number}

    def _dead(self, over: float) -> set[str]:
        from redis.exceptions import ResponseError

        known = {worker for worker, left in self.workers().items() if left <= -over}
        try:
            return known.union(self.unregistered())
        except ResponseError as exc:  # an access list may not allow it
            logger.warning("cannot look for workers that no other worker knows: %s", exc)
            return known

    def unregistered(self) -> list[str]:
        """Workers that hold messages and that no other worker knows: no other would ever requeue
        these. For an operator: it looks through all keys of the database."""
        cursor, found = self._unregistered(0)
        while cursor:
            cursor, more = self._unregistered(cursor)
            found += more
        return list(dict.fromkeys(found))

    def register_unknown(self, cursor: int = 0) -> int:
        """Look through some keys for workers that no other knows, and give each a lease: one that
        is alive renews it; what the others hold is requeued when it has expired.

        Where to go on (*cursor*) is returned, 0 at the end.
        """
        cursor, found = self._unregistered(cursor)
        for worker in found:
            seconds, micros = self._client.time()
            until = seconds + micros / 1e6 + LEASE
            if self._client.zadd(self._workers, {worker: until}, nx=True):
                logger.warning(
                    "worker %s holds %d messages without a lease: they are requeued in %g s unless "
                    "it is alive", worker, self.held(worker), LEASE,
                )  # fmt: skip
        return cursor

    def _unregistered(self, cursor: int) -> tuple[int, list[str]]:
        pattern = re.sub(r"([][*?\\])", r"\\\1", self._hash("")) + "*"
        cursor, keys = self._client.scan(cursor, match=pattern, count=1000, _type="hash")
        workers = [_text(key)[len(self._hash("")) :] for key in keys]
        return cursor, [
            each for each in workers if self._client.zscore(self._workers, each) is None
        ]

    def up_for(self) -> float | None:
        """How long the server has been up, in seconds; None if it does not tell."""
        from redis.exceptions import ResponseError

        try:
            return float(self._client.info("server")["uptime_in_seconds"])
        except (ResponseError, KeyError):  # an access list may not allow it
            return None

    def held(self, worker: str) -> int:
        """How many messages *worker* holds."""
        return int(self._client.hlen(self._hash(worker)))

    def requeue(
        self, worker: str, tags: Collection[str] | None = None, keep: Collection[str] = ()
    ) -> int:
        """Give back what *worker* holds: *tags*, or everything but *keep*; how many there were."""
        from redis.exceptions import ResponseError

        key, given = self._hash(worker), 0
        for tag, value in self._items(key, tags):
            if tag in keep:
                continue
            place, _, payload = value.partition(b"\n")
            keys: list[Any] = [key, self._prefix.encode() + place, self._takes]
            try:
                args: list[Any] = [tag, _redelivered(payload), worker, ""]
                given += int(self._requeue(keys=keys, args=args))
            except ResponseError as exc:  # something that is no list: left there
                logger.error("a message can't be requeued to %r: %s", place.decode(), exc)
        return given

    def write_again(self, worker: str, left: Mapping[str, Left]) -> int:
        """Write into their lists those of *left* that the server has forgotten, and that *worker*
        has in its memory alone; how many there were. What was requeued meanwhile is left alone."""
        from redis.exceptions import ResponseError

        forgotten = 0
        for tag, (number, value) in left.items():
            place, _, payload = value.partition(b"\n")
            keys: list[Any] = [self._hash(worker), self._prefix.encode() + place, self._takes]
            args: list[Any] = [tag, _redelivered(payload), worker, number]
            try:
                forgotten += self._requeue(keys=keys, args=args) == _FORGOTTEN
            except ResponseError as exc:
                logger.error("a message can't be requeued to %r: %s", place.decode(), exc)
        if forgotten:
            logger.warning("Redis has forgotten %d messages: writing them again", forgotten)
        return forgotten

    def _items(self, key: str, tags: Collection[str] | None) -> Iterator[tuple[str, bytes]]:
        if tags is None:
            for tag, value in self._client.hscan_iter(key, count=100):
                yield _text(tag), value
            return
        for tag in tags:
            value = self._client.hget(key, tag)
            if value is not None:
                yield tag, value

    def _hash(self, worker: str) -> str:
        return f"{self._prefix}{KEYS}held:{worker}"


def _redelivered(payload: bytes) -> bytes:
    """*payload* with a tag of its own: the late acknowledgement of its old owner must not take
    it from the next one. What can't be read is requeued as it is."""
    try:
        message = json.loads(payload)
        message["properties"]["delivery_tag"] = str(uuid.uuid4())
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
        return json.dumps(message).encode()
    except Exception:
        return payload


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
