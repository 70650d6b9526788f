"""Dead letters, looked at and replayed: what ``celery dlq`` types, from Python.

::

    with DeadLetters(app) as letters:
        for filed in letters.list(limit=20):
            print(filed.letter.id, filed.letter.task, filed.letter.reason)
        for replayed in letters.replay("4f3a9c01b2d4"):
            print(replayed.result, replayed.why)
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from celery_resilience.brokers import Broker, Found
from celery_resilience.brokers.reach import TIMEOUT, NoAnswer, Reached, Unreachable
from celery_resilience.filters import Filters
from celery_resilience.ids import AmbiguousId, NoSuchId, meant
from celery_resilience.letter import DeadLetter
from celery_resilience.replay import Replay, Replayed, ReplayResult
from celery_resilience.settings import Settings, dead_letter_queues, queue_name

__all__ = [
    "AmbiguousId",
    "DeadLetters",
    "Filed",
    "NoAnswer",
    "NoSuchId",
    "ReplayResult",
    "Replayed",
    "Unreachable",
]

logger = logging.getLogger("celery_resilience")

#: How many letters are held in memory while they are replayed.
_BATCH = 100
_EVERY = Filters()


@dataclass(frozen=True)
class Filed:
    """A letter, and the dead-letter queue that it lies in."""

    letter: DeadLetter
    queue: str


class DeadLetters:
    """The dead letters of a Celery *app*, in the broker's own queues.

    Looking takes nothing out: no letter is removed, reordered or delayed. On RabbitMQ a letter
    that is being looked at is invisible to others until the iteration is over or its process has
    died, so finish one iteration before the next begins, and don't keep one open.

    *dead_letter_queue* takes the place of all that settings, tasks and rules name; *queues* are
    what ``{queue}`` stands for, by default every queue that the app knows. Each answer of the
    broker may take *timeout* seconds; then NoAnswer is raised.
    """

    def __init__(
        self,
        app: Any,
        queues: Iterable[str] | None = None,
        dead_letter_queue: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._app = app
        self.settings = Settings.of(app)
        self._work_queues = None if queues is None else tuple(queues)
        self._own = dead_letter_queue and queue_name(dead_letter_queue, "--dead-letter-queue")
        self._queues: tuple[str, ...] | None = None
        self._reached = Reached(app, timeout)
        self._parameters = parameters_of(app)

    @property
    def queues(self) -> tuple[str, ...]:
        """Every dead-letter queue that the setting, a task or a rule names."""
        if self._queues is None:
            load_tasks(self._app)
            work_queues = self._work_queues or tuple(known_queues(self._app))
            if self._own:
                found = {self._own.replace("{queue}", queue) for queue in work_queues or ("",)}
            else:
                found = dead_letter_queues(self._app, self.settings, work_queues)
            self._queues = tuple(sorted(found))
        return self._queues

    def count(self) -> dict[str, int]:
        """How many letters lie in each dead-letter queue."""
        with self._reached.turn() as broker:
            return {queue: broker.count(queue) for queue in self.queues}

    def list(self, limit: int | None = None, filters: Filters = _EVERY) -> Iterator[Filed]:
        """The first *limit* letters that *filters* accept, the oldest of each queue first."""
        with self._reached.turn() as broker:
            filed = (f for _, f in self._look(broker) if self._accept(filters, f.letter))
            yield from itertools.islice(filed, limit)

    def find(self, letter_id: str) -> Filed:
        """The letter with this id, or the only one whose id begins so (4 characters at least)."""
        (filed,) = self.find_all([letter_id])
        return filed

    def find_all(self, ids: Iterable[str]) -> Sequence[Filed]:
        """The letters with these ids, in their order; raises NoSuchId if one is not there."""
        with self._reached.turn() as broker:
            return [filed for _, filed in self._find(broker, list(ids))]

    def replay(
        self,
        letters: str | Iterable[str] | Literal["all"],
        *,
        filters: Filters = _EVERY,
        limit: int | None = None,
        to_queue: str | None = None,
    ) -> Iterator[Replayed]:
        """Publish the messages of *letters* (an id, ids, or ``"all"``) again, each for a new life.

        Each goes to the queue that it was received from, or to *to_queue*; its letter is removed
        when the broker has confirmed the message, so a crash in between leaves both. With
        ``"all"``, which means those that *filters* accept, it ends with the letters that lay
        there when it began, whatever dies meanwhile.
        Nothing happens before the first result is asked for.
        """
        if to_queue is not None and to_queue in self.queues:
            raise ValueError(f"{to_queue} is a dead-letter queue: nothing would run there")
        with self._reached.turn() as broker:
            until = time.time()
            #: The ids of those that stay where they are.
            kept: set[str] = set()
            chosen: Iterable[tuple[Found, Filed]]
            if letters == "all":
                chosen = self._all(broker, filters, kept)
            else:
                ids = [letters] if isinstance(letters, str) else list(dict.fromkeys(letters))
                chosen, until = self._find(broker, ids), float("inf")
            replay = Replay.of(self._app, broker, self.queues, to_queue, until)
            for found, filed in itertools.islice(chosen, limit):
                replayed = replay.one(found, filed.letter, filed.queue)
                if replayed.result is not ReplayResult.REPLAYED:
                    kept.add(filed.letter.id)
                yield replayed

    def close(self) -> None:
        """Close the connection to the broker; it is opened again when needed."""
        self._reached.close()

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # One letter after the other

    def _look(self, broker: Broker) -> Iterator[tuple[Found, Filed]]:
        for queue in self.queues:
            for found in broker.look(queue):
                yield found, Filed(DeadLetter.from_envelope(found.envelope), queue)

    def _find(self, broker: Broker, ids: Sequence[str]) -> Sequence[tuple[Found, Filed]]:
        """The letters that *ids* mean, in their order; nothing is kept of the others."""
        return meant(
            ids,
            self._look(broker),
            lambda one: one[1].letter.id,
            what="dead letter",
            where=", ".join(self.queues),
            unique=True,
        )

    def _accept(self, filters: Filters, letter: DeadLetter) -> bool:
        return not filters or filters.accept(
            letter.envelope,
            error=letter.error.error,
            message=letter.error.message,
            at=letter.at,
            reason=letter.reason,
            parameters=self._parameters,
        )

    def _all(
        self, broker: Broker, filters: Filters, kept: set[str]
    ) -> Iterator[tuple[Found, Filed]]:
        """As many letters of each queue as lie there now, each once, though they are removed
        while this goes on; *kept* tells which of them are not."""
        for queue in self.queues:
            left = broker.count(queue)
            again = True
            # What somebody else removes meanwhile may move a letter past the place where a broker
            # goes on reading: so once more, until nothing new is found.
            while again and left > 0:
                again = False
                look = broker.look(queue)
                while left > 0 and (batch := list(itertools.islice(look, _BATCH))):
                    for found in batch:
                        letter = DeadLetter.from_envelope(found.envelope)
                        if left < 1 or letter.id in kept:
                            continue
                        left -= 1
                        if not self._accept(filters, letter):
                            kept.add(letter.id)
                            continue
                        again = True
                        yield found, Filed(letter, queue)


def load_tasks(app: Any) -> None:
    """Import every module that has tasks of *app*; one that can't be imported is logged."""
    try:
        app.loader.import_default_modules()
    except Exception as exc:
        logger.warning(
            "not all tasks could be imported (%s: %s): what only they name is not known",
            type(exc).__name__, exc,
        )  # fmt: skip


def known_queues(app: Any) -> set[str]:
    """The queues that *app* can be seen to use: declared, routed to, or named by a task."""
    names = set(app.amqp.queues)
    routes = app.conf.task_routes
    for route in routes.values() if isinstance(routes, Mapping) else ():
        names.add(route.get("queue") if isinstance(route, Mapping) else None)
    names.update(getattr(task, "queue", None) for task in app.tasks.values())
    return {name for name in map(_name, names) if name}


def _name(queue: object) -> str:
    name = getattr(queue, "name", queue)
    return name if isinstance(name, str) else ""


def parameters_of(app: Any) -> Callable[[str], Sequence[str]]:
    """Tells the names of the positional parameters of *app*'s tasks, for the filters."""
    known: dict[str, Sequence[str]] = {}

    def parameters(name: str) -> Sequence[str]:
        if name not in known:
            load_tasks(app)
            try:
                known[name] = tuple(inspect.signature(app.tasks[name].run).parameters)
            except (KeyError, TypeError, ValueError):
                known[name] = ()
        return known[name]

    return parameters
