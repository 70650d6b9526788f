"""A worker takes no more messages while it could not see to them: its dead letters can't be
written, or it can't say that it is alive.

What has been decided stays in memory meanwhile, and nobody can say how much that would become.
What is running goes on, and so does the worker when the way is free again.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Any

__all__ = ["Pause", "Why", "how_to_mend"]

logger = logging.getLogger("celery_resilience")


class Why(Enum):
    """Why a worker takes no more messages: what is said then, and afterwards."""

    LETTERS = "dead letters can't be written", "dead letters are written again"
    LEASE = (
        "this worker can't tell Redis that it is alive, and others will soon be given what it "
        "holds",
        "this worker is known to be alive again",
    )


class Pause:
    """Stops and resumes the consuming of one worker, in the worker's own loop."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._wanted: set[Why] = set()
        self._paused = False

    def begin(self, why: Why) -> None:
        """Take no more messages; what was received already is still begun."""
        if why not in self._wanted:
            self._wanted.add(why)
            self._consumer.call_soon(self._look, why)

    def end(self, why: Why) -> None:
        """Go on, as far as *why* is concerned."""
        if why in self._wanted:
            self._wanted.discard(why)
            self._consumer.call_soon(self._look, why)

    def forget(self) -> None:
        """It consumes again: the connection is a new one, or a queue was added."""
        self._paused = False
        for why in list(self._wanted)[:1]:
            self._consumer.call_soon(self._look, why)

    def _look(self, why: Why) -> None:
        tasks = self._consumer.task_consumer
        if tasks is None or bool(self._wanted) == self._paused:
            return
        self._paused = bool(self._wanted)
        problem, mended = why.value
        if self._paused:
            tasks.cancel()
            logger.error("%s: no more messages are taken until that is over", problem)
        else:
            tasks.consume()
            logger.warning("%s: messages are taken again", mended)


#: What the broker says, and what to do about it.
_ADVICE = (
    (("NOPERM", "ACL failure"), "let the worker's Redis user run this command on this key"),
    (("403", "ACCESS_REFUSED"), "let the worker's user configure and write this queue"),
    (("406", "PRECONDITION"), "delete the queue, or name another with --dead-letter-queue"),
    (("405", "RESOURCE_LOCKED"), "another connection owns the queue: name another one"),
    (
        ("INTERNAL_ERROR",),
        "RabbitMQ's log says what failed; restart that node if it can't run its queues any more",
    ),
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
