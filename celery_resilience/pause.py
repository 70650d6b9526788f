"""A worker whose dead letters can't be written takes no more messages until they can.

What has been decided stays in memory meanwhile, and nobody can say how much that would become.
What is running goes on, and so does the worker when the way is free again.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["Pause", "how_to_mend"]

logger = logging.getLogger("celery_resilience")


class Pause:
    """Stops and resumes the consuming of one worker, in the worker's own loop."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._wanted = self._paused = False

    def begin(self) -> None:
        """Take no more messages; what was received already is still begun."""
        if not self._wanted:
            self._wanted = True
            self._consumer.call_soon(self._look)

    def end(self) -> None:
        """Go on."""
        if self._wanted:
            self._wanted = False
            self._consumer.call_soon(self._look)

    def forget(self) -> None:
        """It consumes again: the connection is a new one, or a queue was added."""
        self._paused = False
        if self._wanted:
            self._consumer.call_soon(self._look)

    def _look(self) -> None:
        tasks = self._consumer.task_consumer
        if tasks is None or self._wanted == self._paused:
            return
        self._paused = self._wanted
        if self._paused:
            tasks.cancel()
            logger.error("dead letters can't be written: no more messages are taken until they can")
        else:
            tasks.consume()
            logger.warning("dead letters are written again: messages are taken again")


#: What the broker says, and what to do about it.
_ADVICE = (
    (("NOPERM", "ACL failure"), "let the worker's Redis user run this command on this key"),
    (("403", "ACCESS_REFUSED"), "let the worker's user configure and write this queue"),
    (("406", "PRECONDITION"), "delete the queue, or name another with --dead-letter-queue"),
    (("405", "RESOURCE_LOCKED"), "another connection owns the queue: name another one"),
    (("full or unavailable",), "replay or export some of its letters, or raise its x-max-length"),
    (("short of memory or disk",), "give RabbitMQ more memory or disk"),
    (("OOM", "maxmemory"), "raise Redis' maxmemory, or replay some dead letters"),
    (
        ("WRONGTYPE",),
        "this Redis key has another type than it should: remove it, or name another queue",
    ),
    (("READONLY",), "this Redis is a replica: broker_url has to lead to the master"),
)


def how_to_mend(problem: BaseException) -> str:
    """What an operator can do about *problem*; empty where it says enough itself."""
    said = f"{type(problem).__name__}: {problem}"
    return next((advice for words, advice in _ADVICE if any(w in said for w in words)), "")
