"""What a worker of ours holds of a Redis broker, and how that is given back when it dies.

kombu keeps what is delivered and not acknowledged in one hash for everybody, and gives back what
has lain there for an hour: a dead worker's messages too late, and a living one's too early. Here
each worker has a hash of its own, and a lease: what it holds is its own for as long as it says
that it is alive, however long a task runs, and given back within seconds after it has died.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as _redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from celery_resilience.brokers.lua import KEYS, lua
from celery_resilience.headers import QUEUE

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["GRACE", "LEASE", "RENEW", "HeldQoS", "Holder", "Leases", "take_over"]

logger = logging.getLogger("celery_resilience")

#: How long a worker counts as alive after it has said so, in seconds, and how often it does.
LEASE, RENEW = 30.0, 5.0
#: After an outage everybody's lease has run out: how long the others are given to come back.
GRACE = 10.0


class Holder:
    """One worker, as the holder of messages; it keeps its name over reconnections."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        #: The hash, without the connection's prefix: delivery tag to list and payload.
        self.key = f"{KEYS}held:{self.id}"
        #: When its lease was last renewed late, by the monotonic clock.
        self.late_at = -math.inf
        #: The tags of what was let go when its connection had gone: the next one says so.
        self.unsent: list[str] = []


class HeldQoS(_redis.QoS):
    """kombu's QoS, which holds messages in the hash of its channel's ``holder``."""

    channel: Any
    _delivered: Any
    #: Tags of messages that the script which took them has written down already.
    popped: set[str]

    def append(self, message: Any, delivery_tag: str) -> None:
        if delivery_tag in self.popped:
            self.popped.discard(delivery_tag)
        else:
            raw = dict(message._raw)
            place = _list_of(self.channel, raw, raw.pop(QUEUE, None))
            self._write_down(delivery_tag, f"{place}\n{dumps(raw)}")
        virtual.QoS.append(self, message, delivery_tag)

    def _write_down(self, tag: str, value: str) -> None:
        from redis.exceptions import OutOfMemoryError

        key = self.channel.holder.key
        try:
            with self.channel.conn_or_acquire() as client:
                client.hset(key, tag, value)
        except OutOfMemoryError:  # it has left its list already, and would be nowhere
            key = f"{self.channel.global_keyprefix or ''}{key}"
            plain_client(self.channel).eval(lua("keep"), 1, key, tag, value)

    def ack(self, delivery_tag: str) -> None:
        try:
            with self.channel.conn_or_acquire() as client:
                client.hdel(self.channel.holder.key, delivery_tag)
        except (
            AttributeError,
            OSError,
            self.channel.ResponseError,
            *self.channel.connection_errors,
        ):
            # The connection has gone, or writing is refused for now, and the task is done: it must
            # not be run again.
            self.channel.holder.unsent.append(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            self.ack(delivery_tag)
            return
        self._give_back([delivery_tag])
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Called when the channel closes, which its holder outlives: what runs goes on. The next
        connection, or the worker at its end, gives back what does not."""
        self._delivered.clear()

    def _give_back(self, tags: Collection[str]) -> None:
        leases = Leases(plain_client(self.channel), self.channel.global_keyprefix or "")
        leases.give_back(self.channel.holder.id, tags)


def take_over(channel: Any, holder: Holder) -> bool:
    """Let *channel*, from which nothing was read yet, hold its messages for *holder*.

    False, and nothing is changed, where kombu's acknowledgements are not emulated.
    """
    qos = channel.qos
    if not isinstance(qos, _redis.QoS):
        return False
    channel.holder = holder
    if not isinstance(qos, HeldQoS):
        # Celery may have changed methods of this very object (worker_disable_prefetch).
        qos.__class__ = HeldQoS
    qos.__dict__.setdefault("popped", set())
    kind: Any = type(channel)
    channel.__class__ = _reading_every_list(kind)
    Leases(plain_client(channel), channel.global_keyprefix or "").let_go(holder)
    return True


@cache
def _reading_every_list(kind: type) -> type:
    """A *kind* of channel that also reads the lists of its queues on fanout exchanges.

    Nobody writes them but who puts a message back into the queue that it came from: a retry, a
    replay, and what is given back.
    """

    def active_queues(channel: Any) -> list[str]:
        return list(dict.fromkeys(channel._active_queues))

    return type(kind.__name__, (kind,), {"active_queues": property(active_queues)})


def plain_client(channel: Any, *, single: bool = False) -> Redis:
    """A client on *channel*'s own connections that adds no prefix to any key: kombu's adds it to
    some commands and some keys only. A *single* one keeps its connection, for one command at a
    time."""
    from redis import Redis

    client = Redis(connection_pool=channel.pool, single_connection_client=single)
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
        self._lease = client.register_script(lua("lease"))
        self._back = client.register_script(lua("giveback"))
        self._forget = client.register_script(lua("leave"))

    def renew(self, holder: Holder) -> tuple[int, list[str]]:
        """Say that *holder* is alive; how many are, and those whose lease has run out."""
        count, late, *dead = self._lease(keys=[self._workers], args=[holder.id, LEASE])
        if late:
            holder.late_at = time.monotonic()
        return int(count), [_text(name) for name in dead]

    def let_go(self, holder: Holder) -> None:
        """Let go what *holder* could not let go when it was done."""
        tags = holder.unsent[:]
        if tags:
            self._client.hdel(self._prefix + holder.key, *tags)
            for tag in tags:
                with suppress(ValueError):  # another thread has let it go as well
                    holder.unsent.remove(tag)

    def leave(self, worker: str, *, if_dead: bool = False) -> bool:
        """Forget *worker*; not, and False, if it still holds something."""
        keys = [self._workers, self._hash(worker)]
        return bool(self._forget(keys=keys, args=[worker, "1" if if_dead else "0"]))

    def workers(self) -> dict[str, float]:
        """Every worker that is known, and for how many more seconds it counts as alive."""
        seconds, micros = self._client.time()
        now = seconds + micros / 1e6
        rows = self._client.zrange(self._workers, 0, -1, withscores=True)
        return {_text(name): float(until) - now for name, until in rows}

    def orphans(self, over: float = 0.0) -> dict[str, int]:
        """The workers whose lease is *over* for so many seconds, and how many messages each holds;
        none soon after the server's start, when everybody's has run out."""
        if self.up_for() < 2 * GRACE:
            return {}
        dead = [worker for worker, left in self.workers().items() if left <= -over]
        held = {worker: int(self._client.hlen(self._hash(worker))) for worker in dead}
        return {worker: number for worker, number in held.items() if number}

    def up_for(self) -> float:
        """How long the server has been up, in seconds; 0 if it does not tell."""
        from redis.exceptions import ResponseError

        try:
            return float(self._client.info("server")["uptime_in_seconds"])
        except (ResponseError, KeyError):  # an access list may not allow it
            return 0.0

    def held(self, worker: str) -> int:
        """How many messages *worker* holds."""
        return int(self._client.hlen(self._hash(worker)))

    def give_back(
        self, worker: str, tags: Collection[str] | None = None, keep: Collection[str] = ()
    ) -> int:
        """Give back what *worker* holds: *tags*, or everything but *keep*; how many there were."""
        from redis.exceptions import ResponseError

        key, given = self._hash(worker), 0
        for tag, value in self._items(key, tags):
            if tag in keep:
                continue
            place, _, payload = value.partition(b"\n")
            keys: list[Any] = [key, self._prefix.encode() + place]
            try:
                given += int(self._back(keys=keys, args=[tag, _redelivered(payload)]))
            except ResponseError as exc:  # something that is no list: in nobody's way
                logger.error("a message can't be given back to %r: %s", place.decode(), exc)
        return given

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


def _list_of(channel: Any, raw: dict[str, Any], queue: str | None) -> str:
    if queue is None:
        info = (raw.get("properties") or {}).get("delivery_info") or {}
        (queue,) = list(channel._lookup(info.get("exchange"), info.get("routing_key")))[:1]
    step = channel._get_message_priority({"properties": raw.get("properties")}, reverse=False)
    return str(channel._q_for_pri(queue, step))


def _redelivered(payload: bytes) -> bytes:
    """*payload* with a tag of its own: the late acknowledgement of its old holder must not take
    it from the next one. What can't be read is given back as it is."""
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
