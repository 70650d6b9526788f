"""Dead letters, inspected, replayed and dropped: ``celery dlq`` from Python.

::

    with DeadLetters(app) as letters:
        for filed in letters.list(limit=20):
            print(filed.name, filed.letter.task, filed.letter.reason)
        for replayed in letters.replay("4f3a9c01b2d4"):
            print(replayed.result, replayed.why)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Literal, Union

from celery_resilience.brokers.base import Broker, Browsed
from celery_resilience.brokers.connect import TIMEOUT, NoAnswer, Unreachable
from celery_resilience.messages.filters import Filters
from celery_resilience.operate.app_info import (
    known_queues,
    letter_queues,
    load_tasks,
    parameters_of,
)
from celery_resilience.operate.drop import Drop, Dropped, DropResult
from celery_resilience.operate.filed import Filed, Tally, registered
from celery_resilience.operate.groups import Group, grouped
from celery_resilience.operate.ids import AmbiguousId, NoSuchId
from celery_resilience.operate.letter_browser import LetterBrowser
from celery_resilience.operate.replay import Replay, Replayed, ReplayResult
from celery_resilience.operate.session import OperatorSession
from celery_resilience.settings import queue_name

__all__ = [
    "AmbiguousId",
    "DeadLetters",
    "DropResult",
    "Dropped",
    "Filed",
    "NoAnswer",
    "NoSuchId",
    "ReplayResult",
    "Replayed",
    "Tally",
    "Unreachable",
    "known_queues",
    "load_tasks",
    "parameters_of",
]

#: How long to wait for another command that reads letters, and how often to ask, in seconds.
_PATIENCE, _AGAIN = 2.0, 0.1
_EVERY = Filters()

#: An id, ids, or ``"all"``.
Meant = Union[str, Iterable[str], Literal["all"]]  # noqa: UP007


class DeadLetters(OperatorSession):
    """The dead letters of a Celery *app*, in the broker's own queues.

    Reading takes nothing out: no letter is removed, reordered or delayed. On RabbitMQ a letter
    that is being read is invisible to others until the iteration is over or its process has
    died, so finish one iteration before the next begins, and don't keep one open.

    *dead_letter_queue* takes the place of all that settings, tasks and rules name; *queues* are
    what ``{queue}`` stands for, by default every queue that the app knows. With *all_queues* those
    that letters were ever written to belong to them as well, where the broker can tell (Redis).

    Each answer of the broker may take *timeout* seconds; then NoAnswer is raised.
    """

    def __init__(
        self,
        app: Any,
        queues: Iterable[str] | None = None,
        dead_letter_queue: str | None = None,
        timeout: float = TIMEOUT,
        *,
        all_queues: bool = False,
    ) -> None:
        super().__init__(app, timeout)
        self._work_queues = None if queues is None else tuple(queues)
        self._own = dead_letter_queue and queue_name(dead_letter_queue, "--dead-letter-queue")
        self._all_queues = all_queues
        self._queues: tuple[str, ...] | None = None
        self._problem = ""

    @property
    def queues(self) -> tuple[str, ...]:
        """Every dead-letter queue that the setting, a task or a rule names."""
        if self._queues is None:
            load_tasks(self._app)
            work_queues = self._work_queues or tuple(known_queues(self._app))
            if self._own:
                found = {self._own.replace("{queue}", queue) for queue in work_queues or ("",)}
            else:
                found, self._problem = letter_queues(self._app, self.settings, work_queues)
            if self._all_queues:
                with self._session.use() as broker:
                    found |= registered(broker)
            self._queues = tuple(sorted(found))
        return self._queues

    @property
    def problem(self) -> str:
        """Why not every queue is known that letters may lie in; empty where that is so."""
        return self._problem if self.queues else ""

    def count(self) -> dict[str, int]:
        """How many letters lie in each dead-letter queue for all to see."""
        queues = self.queues
        with self._session.use() as broker:
            return {queue: broker.count(queue) for queue in queues}

    def tally(self, patience: float | None = None) -> list[Tally]:
        """The same, with what is not known: RabbitMQ does not count letters that are being read.

        That is over soon, and is waited for, *patience* seconds at most, by default 2.
        """
        wait = _PATIENCE if patience is None else patience
        queues, until = self.queues, time.monotonic() + wait
        with self._session.use() as broker:
            tallies = {queue: broker.figures(queue) for queue in queues}
            while time.monotonic() < until:
                busy = [queue for queue, figures in tallies.items() if figures.unknown]
                if not busy:
                    break
                time.sleep(_AGAIN)
                tallies.update({queue: broker.figures(queue) for queue in busy})
        return [Tally(queue, one.messages, one.unknown) for queue, one in tallies.items()]

    def elsewhere(self) -> dict[str, int]:
        """How many letters lie in queues that no setting names any more, as far as the broker can
        tell: Redis remembers them, of RabbitMQ only the default one is asked."""
        queues = set(self.queues)
        if self._own or self._all_queues:
            return {}
        with self._session.use() as broker:
            counts = {queue: broker.count(queue) for queue in sorted(registered(broker) - queues)}
        return {queue: number for queue, number in counts.items() if number}

    def list(self, limit: int | None = None, filters: Filters = _EVERY) -> Iterator[Filed]:
        """The first *limit* letters that *filters* accept, the oldest of each queue first."""
        with self._browser() as there:
            accepted = (one for _, one in there.every() if there.accept(filters, one.letter))
            yield from itertools.islice(accepted, limit)

    def groups(self, filters: Filters = _EVERY) -> Sequence[Group]:
        """The letters that *filters* accept by their causes, the largest group first."""
        return grouped(filed.letter for filed in self.list(filters=filters))

    def find(self, letter_id: str) -> Filed:
        """The letter with this id, or the newest of the task with this id, or the only one whose
        id, or whose task's, begins so."""
        (filed,) = self.find_all([letter_id])
        return filed

    def find_all(self, ids: Iterable[str]) -> Sequence[Filed]:
        """The letters with these ids, in their order; raises NoSuchId if one is not there."""
        with self._browser() as there:
            return [filed for _, filed in there.with_ids(list(ids))]

    def replay(
        self,
        letters: Meant,
        *,
        filters: Filters = _EVERY,
        limit: int | None = None,
        to_queue: str | None = None,
    ) -> Iterator[Replayed]:
        """Publish the messages of *letters* (an id, ids, or ``"all"``) again, retries at 0.

        Each goes to the queue that it was received from, or to *to_queue*; its letter is removed
        when the broker has confirmed the message, so a crash in between leaves both. With
        ``"all"``, which means those that *filters* accept, it ends with the letters that lay
        there when it began, whatever is written meanwhile.
        Nothing happens before the first result is asked for.
        """
        if to_queue is not None and to_queue in self.queues:
            raise ValueError(f"{to_queue} is a dead-letter queue: nothing would run there")

        def begin(broker: Broker, until: float) -> Callable[[Browsed, Filed], Replayed]:
            replay = Replay.of(self._app, broker, self.queues, to_queue, until)
            return lambda found, filed: replay.one(found, filed.letter, filed.queue)

        return self._change(letters, filters, limit, begin, ReplayResult.PUBLISHED)

    def drop(
        self,
        letters: Meant,
        *,
        filters: Filters = _EVERY,
        limit: int | None = None,
        because: str = "",
    ) -> Iterator[Dropped]:
        """Remove *letters* (an id, ids, or ``"all"``) for good: they cannot be replayed any more.

        *because* is for the log. With ``"all"``, which means those that *filters* accept, it ends
        with the letters that lay there when it began.
        Nothing happens before the first result is asked for.
        """

        def begin(broker: Broker, until: float) -> Callable[[Browsed, Filed], Dropped]:
            drop = Drop(broker, until, because)
            return lambda found, filed: drop.one(found, filed.letter, filed.queue)

        return self._change(letters, filters, limit, begin, DropResult.DROPPED)

    @contextmanager
    def _browser(self) -> Iterator[LetterBrowser]:
        queues = self.queues
        with self._session.use() as broker:
            yield LetterBrowser(broker, queues, self._parameters)

    def _change(
        self,
        letters: Meant,
        filters: Filters,
        limit: int | None,
        begin: Callable[[Broker, float], Callable[[Browsed, Filed], Any]],
        gone: Enum,
    ) -> Iterator[Any]:
        """What *begin* makes, for each of *letters*; those whose result is *gone* are no longer
        there afterwards."""
        with self._browser() as there:
            until = time.time()
            #: Those that stay where they are. Only numbers, for of the letters themselves there
            #: may be more than memory holds.
            kept: set[int] = set()
            chosen: Iterable[tuple[Browsed, Filed]]
            if letters == "all":
                chosen = there.each_once(filters, kept)
            else:
                ids = [letters] if isinstance(letters, str) else list(dict.fromkeys(letters))
                chosen, until = there.with_ids(ids), float("inf")
            change = begin(there.broker, until)
            for found, filed in itertools.islice(chosen, limit):
                changed = change(found, filed)
                if changed.result is not gone:
                    kept.add(hash(found.key))
                yield changed
