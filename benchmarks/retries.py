"""Waiting retries in any number: copies of a real one, held by the same script."""

from __future__ import annotations

import json
import random
import uuid
from typing import Any

import redis
from kombu.transport.redis import Channel
from side import WAITING, Side
from waiting_worker import ARGUMENT

from celery_resilience.brokers.redis.scheduled import ScheduledRetries
from celery_resilience.brokers.redis.scripts import KEYS

#: The keys that the original would be in, with kombu and without anything of ours.
HELD = (f"{KEYS}held:bench", "unacked_index")
#: A lone command holds thousands a second; who fills up, sends many at a time.
_AT_ONCE = 1000


class Retries:
    """What one real failed task of ours waits as, and as many more as are wanted."""

    def __init__(self, side: Side) -> None:
        """Let the worker of *side* fail a task; it is running, and is stopped."""
        side.send("fail", ARGUMENT, 5000)
        side.until(lambda: bool(side.redis.zcard(WAITING)))
        side.stop()
        (payload,) = side.redis.zrange(WAITING, 0, -1)
        side.redis.flushall()
        self.template: str = payload.decode()
        message = json.loads(payload)
        self._id = message["headers"]["id"]
        self._tag = message["properties"]["delivery_tag"]
        self.redis: redis.Redis = side.redis
        self.waiting = waiting(side.redis)

    @property
    def size(self) -> int:
        """The bytes of one."""
        return len(self.template)

    def another(self, mark: str = "") -> str:
        """The payload of one more; *mark* goes where its id was."""
        text = self.template.replace(self._tag, str(uuid.uuid4()))
        return text.replace(self._id, mark or str(uuid.uuid4()))

    def fill(self, number: int, low: float, high: float, place: str = "work") -> None:
        """Let *number* more wait for *place*, due in *low* to *high* seconds."""
        while number > 0:
            with self.redis.pipeline(transaction=False) as pipe:
                many = waiting(pipe)
                for _ in range(min(number, _AT_ONCE)):
                    delay = random.uniform(low, high)
                    many.hold(HELD, "", True, self.another(), place, delay)
                pipe.execute()
            number -= _AT_ONCE


def waiting(client: Any) -> ScheduledRetries:
    """Those that wait where *client* is connected to, with kombu's own names."""
    return ScheduledRetries(client, "", Channel.sep)
