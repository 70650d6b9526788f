"""Retries that wait in Redis until they are due.

A sorted set for each list that workers read (a queue and a priority step): the message, by the
time that it is due on the server's clock. One more says which lists have such a set, by the
earliest due time, so that one look tells what is to be moved, and when to look again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu.utils.json import dumps, loads

from celery_resilience.brokers.base import Browsed
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["Original", "ScheduledMessage", "ScheduledRetries", "read"]

#: The most that one call moves: Redis does nothing else meanwhile, some milliseconds at most.
_BATCH = 100
_PAGE = 100
#: So many ids are looked for one by one.
_PATTERNS = 10
#: How long a worker that wakes for every due time is the only one that does, in milliseconds.
_TURN = 3000


@dataclass(frozen=True)
class ScheduledMessage(Browsed):
    """A retry that waits; its ``key`` is the list that it waits for and the payload."""

    #: When it is due, in seconds since the epoch by the server's clock.
    due: float = 0.0


class Moved(NamedTuple):
    """What one check for due retries found."""

    moved: int
    #: Those whose list can't take them; they are tried again later.
    stuck: int
    #: Seconds until the next is due; None: nothing waits.
    next_in: float | None
    #: Whether this worker is the one that wakes for every due time.
    turn: bool
    #: Why those that are stuck are; empty: none is.
    why: str = ""


class Original(NamedTuple):
    """A message that a worker was given, as the scripts look for it."""

    #: The keys of the hash that it is held in, and of kombu's index.
    held: tuple[str, str]
    #: The key of the takes of workers.
    takes: str
    tag: str
    #: The worker that holds it, and the number of its take; empty where they are not counted.
    worker: str
    number: int | str
    #: Whether there is something to ack.
    is_there: bool
    #: The key that says that its copy was written, where there is nothing to ack.
    written: str


class ScheduledRetries:
    """The retries that wait in one broker, under one key prefix."""

    def __init__(
        self, client: Redis, prefix: str, separator: str, steps: Collection[int] = (3, 6, 9)
    ) -> None:
        self._client: Any = client  # its types allow for what only other settings bring
        self._prefix = prefix
        #: What kombu puts between a queue's name and a priority step; it has none for step 0.
        self._separator = separator
        self._steps = {str(step) for step in steps if step}
        self._lists = f"{prefix}{KEYS}waiting"
        self._schedule_retry = client.register_script(lua("schedule_retry"))
        self._release_due = client.register_script(lua("release_due"))
        self._move_scheduled = client.register_script(lua("move_scheduled"))

    def schedule(self, original: Original, copy: str, place: str, delay: float) -> int:
        """Let *copy* wait *delay* seconds for the list *place*, then ack the *original*;
        what the script says of whose that is."""
        gone = "0" if original.is_there else "1"
        return int(
            self._schedule_retry(
                keys=[
                    *original.held, self._set(place), self._lists, original.takes, original.written,
                ],
                args=[
                    original.tag, copy, gone, repr(delay), place, original.worker, original.number,
                ],
            )
        )  # fmt: skip

    def move_due(self, worker: str) -> Moved:
        """Move what is due to its list, 100 at most."""
        moved, stuck, next_in, turn, why = self._release_due(
            keys=[self._lists, f"{self._prefix}{KEYS}turn"],
            args=[self._prefix, _BATCH, worker, _TURN],
        )
        next_in = None if next_in < 0 else next_in / 1000
        return Moved(moved, stuck, next_in, bool(turn), why.decode("utf-8", "replace"))

    # For an operator

    def now(self) -> float:
        """The server's clock, in seconds since the epoch."""
        seconds, micros = self._client.time()
        return float(seconds) + float(micros) / 1e6

    def counts(self) -> dict[str, int]:
        """How many retries wait for each queue that any waits for."""
        counts: dict[str, int] = {}
        for place in self._places():
            queue = self.queue_of(place)
            counts[queue] = counts.get(queue, 0) + int(self._client.zcard(self._set(place)))
        return {queue: number for queue, number in sorted(counts.items()) if number}

    def browse(self, queues: Collection[str] = ()) -> Iterator[ScheduledMessage]:
        """Those of *queues* or of all, the earliest due of each list first.

        They stay where they are. One that is moved meanwhile may be missed, none comes twice.
        """
        for place in self._places():
            if queues and not {self.queue_of(place), place}.intersection(queues):
                continue
            seen: set[bytes] = set()
            low = "-inf"
            while True:
                page = self._client.zrangebyscore(
                    self._set(place), low, "+inf", 0, _PAGE + len(seen), withscores=True
                )
                fresh = [(payload, due) for payload, due in page if payload not in seen]
                for payload, due in fresh:
                    envelope = self._read(place, payload)
                    if not queues or envelope.queue in queues:
                        yield ScheduledMessage(envelope, key=(place, payload), due=float(due))
                if not fresh:
                    break
                # By due time, not by position: what was moved meanwhile shifts no other.
                last = float(fresh[-1][1])
                low = repr(last)
                seen = {payload for payload, due in page if float(due) == last}

    def find(
        self, ids: Collection[str], wanted: Callable[[Envelope], bool] | None = None
    ) -> Iterator[ScheduledMessage]:
        """What waits of the tasks with these *ids*, or is *wanted*, wherever it waits."""
        # Redis compares everything with each pattern: for many it is cheaper to read it all, once.
        patterns: list[str | None] = [None]
        if len(ids) <= _PATTERNS and wanted is None:
            patterns = [pattern for task_id in ids for pattern in _containing(task_id)]
        for place, pattern in product(self._places(), patterns):
            for payload, due in self._client.zscan_iter(self._set(place), pattern, count=1000):
                envelope = self._read(place, payload)
                id_ = envelope.properties.get("correlation_id")
                if id_ in ids or (wanted is not None and wanted(envelope)):
                    yield ScheduledMessage(envelope, key=(place, payload), due=float(due))

    def put(self, found: ScheduledMessage, payload: str | bytes, to: str) -> bool:
        """Put *payload* into the list *to*, then remove what was *found*; False: it was gone."""
        place, original = found.key
        return bool(
            self._move_scheduled(
                keys=[self._set(place), self._lists, self._prefix + to],
                args=[original, payload, place, ""],
            )
        )

    def remove(self, found: ScheduledMessage) -> bool:
        """Remove what was *found*; False: it was gone."""
        place, original = found.key
        keys = [self._set(place), self._lists, self._lists]
        return bool(self._move_scheduled(keys=keys, args=[original, "", place, "-"]))

    def add(self, found: ScheduledMessage) -> None:
        """Let what was removed wait again until it is due."""
        place, original = found.key
        self._client.zadd(self._lists, {place: found.due}, lt=True)
        self._client.zadd(self._set(place), {original: found.due})

    def delay(self, found: ScheduledMessage, due: float) -> bool:
        """Let what was *found* wait until *due*, in seconds since the epoch; False: it was gone."""
        place, original = found.key
        keys = [self._set(place), self._lists, self._lists]
        return bool(self._move_scheduled(keys=keys, args=[original, original, place, f"{due:.6f}"]))

    def queue_of(self, place: str) -> str:
        """The queue that the list *place* belongs to, as far as its name tells."""
        queue, _, step = place.rpartition(self._separator)
        return queue if queue and step in self._steps else place

    def _read(self, place: str, payload: bytes) -> Envelope:
        """The message in *payload*, with its queue; that one's name may end like a priority's."""
        envelope = read(payload, self.queue_of(place))
        if envelope.queue != place and History.loads(envelope.headers.get(HEADER)).queue == place:
            return replace(envelope, queue=place)
        return envelope

    def _places(self) -> list[str]:
        return [name.decode() for name in self._client.zrange(self._lists, 0, -1)]

    def _set(self, place: str) -> str:
        return f"{self._lists}:{place}"


def _containing(task_id: str) -> set[str]:
    """Patterns of Redis' that fit every payload with this id in it, as ASCII or as UTF-8."""
    forms = (dumps(task_id)[1:-1], json.dumps(task_id, ensure_ascii=False)[1:-1])
    return {"*" + re.sub(r"([][*?\\^-])", r"\\\1", form) + "*" for form in forms}


def read(payload: bytes | str, queue: str) -> Envelope:
    """The message in *payload*, which lies in or waits for *queue*."""
    try:
        raw: Any = loads(payload)
        return Envelope.from_wire(raw, queue)
    except Exception:  # not an entry of ours: it is shown as what it is
        body = payload if isinstance(payload, bytes) else payload.encode()
        return Envelope(body, None, None, headers={}, queue=queue)
