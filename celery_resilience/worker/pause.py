"""Pauses consuming while this worker could not handle more messages: its dead letters can't be
written, or its lease can't be renewed.

Settlements that wait for the broker stay in memory, and without a pause nothing would limit them.
Running tasks go on; consuming resumes when the cause is gone.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Any

__all__ = ["Pause", "Why", "how_to_fix"]

logger = logging.getLogger("celery_resilience")


class Why(Enum):
    """Why consuming is paused: the log lines at its begin and at its end."""

    LETTERS = (
        "dead letters can't be written: consuming is paused until the dead-letter queue accepts "
        "them",
        "dead letters are written again: consuming is resumed",
    )
    LEASE = (
        "the lease of this worker can't be renewed, and others will soon requeue its messages: "
        "consuming is paused until it is renewed",
        "the lease of this worker is renewed again: consuming is resumed",
    )


class Pause:
    """Pauses and resumes the consuming of one worker, in the worker's own loop."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._wanted: set[Why] = set()
        self._paused = False

    def begin(self, why: Why) -> None:
        """Pause for *why*; messages already received are still run."""
        if why not in self._wanted:
            self._wanted.add(why)
            self._consumer.call_soon(self._apply, why)

    def end(self, why: Why) -> None:
        """Resume, unless there is another reason to pause than *why*."""
        if why in self._wanted:
            self._wanted.discard(why)
            self._consumer.call_soon(self._apply, why)

    def forget(self) -> None:
        """Celery consumes again: the connection is a new one, or a queue was added."""
        self._paused = False
        for why in list(self._wanted)[:1]:
            self._consumer.call_soon(self._apply, why)

    def _apply(self, why: Why) -> None:
        tasks = self._consumer.task_consumer
        if tasks is None or bool(self._wanted) == self._paused:
            return
        self._paused = bool(self._wanted)
        problem, solved = why.value
        if self._paused:
            tasks.cancel()
            logger.error(problem)
        else:
            tasks.consume()
            logger.warning(solved)


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


def how_to_fix(problem: BaseException) -> str:
    """What an operator can do about *problem*; empty where it says enough itself."""
    said = f"{type(problem).__name__}: {problem}"
    return next((advice for words, advice in _ADVICE if any(w in said for w in words)), "")
