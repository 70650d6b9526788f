"""The facts that the doctor's checks look at, and their findings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from celery_resilience.brokers.base import Broker
from celery_resilience.brokers.connect import TIMEOUT, BrokerSession
from celery_resilience.brokers.within import within
from celery_resilience.operate.app_info import known_queues, load_tasks
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.retries import NotListed, Retries

__all__ = ["Check", "Diagnosis", "Finding", "Report", "WorkerSeen"]

logger = logging.getLogger("celery_resilience")

#: How long workers are given to answer, in seconds.
PATIENCE = 1.5
#: Only tasks of ours have it: workers are asked for it with each of their tasks.
_MARK = "classify_failures"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    #: The check that has found it.
    check: str
    what: str
    #: What it leads to.
    impact: str
    #: The command or setting that fixes it.
    fix: str


@dataclass(frozen=True)
class Report:
    """The result of an examination."""

    findings: tuple[Finding, ...] = ()
    #: What is worth knowing, and was asked for by a setting or a task.
    notes: tuple[str, ...] = ()
    #: What was not checked, and why.
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerSeen:
    """What one worker has answered."""

    #: The queues that it consumes.
    queues: tuple[str, ...] = ()
    #: Through which transport it takes from Redis: ``own``, ``kombu``, or what else its broker's
    #: URL names; None: it did not say.
    transport: str | None = None
    #: Why it takes through kombu's, where it is one of ours.
    why: str = ""
    #: How many of its tasks are of ours and how many are not, Celery's own left out.
    ours: int = 0
    stock: int = 0


@dataclass
class Diagnosis:
    """An app and its broker: each thing is asked once, when the first check wants to know it."""

    app: Any
    #: How the app is named on a command line: ``celery -A shop``.
    command: str = "celery"
    #: How long an answer of the broker may take, in seconds.
    timeout: float = TIMEOUT
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def retries(self) -> Retries:
        """The scheduled retries."""
        return self._opened.enter_context(Retries(self.app, self.timeout))

    @cached_property
    def reached(self) -> tuple[Any, Broker]:
        """A connection to the broker, and the Broker on it."""
        session = BrokerSession(self.app, self.timeout)
        self._opened.callback(session.close)
        broker = self._opened.enter_context(session.use())
        return session.connection, broker

    @property
    def driver(self) -> str:
        """The kind of broker: ``redis``, ``amqp`` ..."""
        return str(self.reached[0].transport.driver_type)

    @cached_property
    def waiting(self) -> Mapping[str, int] | None:
        """How many retries are scheduled for each queue that has any; None: unknown."""
        try:
            counts = self.retries.count()
        except NotListed as exc:
            self.unchecked.append(f"scheduled retries: {exc}")
            return None
        return {queue: number for queue, number in counts.items() if number}

    @cached_property
    def dead_letter_queues(self) -> tuple[str, ...]:
        """Every dead-letter queue of the app."""
        return DeadLetters(self.app).queues

    @cached_property
    def tasks(self) -> Mapping[str, Any]:
        """The app's tasks without Celery's own."""
        load_tasks(self.app)
        names = (name for name in sorted(self.app.tasks) if not name.startswith("celery."))
        return {name: self.app.tasks[name] for name in names}

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """The queues that the app can be seen to use."""
        load_tasks(self.app)
        return tuple(sorted(known_queues(self.app)))

    @cached_property
    def workers(self) -> Mapping[str, WorkerSeen] | None:
        """The workers that answer, by their names; None: none did."""
        try:
            # All at once: each waits for its full time, since the number of workers is unknown.
            with ThreadPoolExecutor(3) as pool:
                queues, stats, tasks = pool.map(self._ask, ("active_queues", "stats", "registered"))
        except Exception as exc:  # a transport without remote control says so in its own way
            logger.debug("workers can't be asked", exc_info=True)
            self.unchecked.append(f"queues that workers consume: workers cannot be asked ({exc})")
            return None
        names = sorted({*queues, *stats, *tasks})
        if not names:
            self.unchecked.append(
                f"queues that workers consume: no worker answered within {PATIENCE:g} s"
            )
            return None
        return {name: _seen(queues.get(name), stats.get(name), tasks.get(name)) for name in names}

    @cached_property
    def consumed(self) -> Mapping[str, tuple[str, ...]] | None:
        """The queues that workers say they consume, each with their names; None: none answered."""
        if self.workers is None:
            return None
        found: dict[str, tuple[str, ...]] = {}
        for name, worker in self.workers.items():
            for queue in worker.queues:
                found[queue] = (*found.get(queue, ()), name)
        return found

    def _ask(self, question: str) -> Mapping[str, Any]:
        inspect = self.app.control.inspect(timeout=PATIENCE)
        arguments = (_MARK,) if question == "registered" else ()
        ask = partial(getattr(inspect, question), *arguments)
        return within(self.timeout, ask, "the broker") or {}

    def __enter__(self) -> Diagnosis:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._opened.__exit__(*exc_info)


Check = Callable[[Diagnosis], Iterator[Finding]]


def _by_its_url(stats: Mapping[str, Any]) -> str | None:
    """The transport of a worker without us, or with us before we said it."""
    named = (stats.get("broker") or {}).get("transport")
    if named in ("redis", "rediss", "sentinel"):
        return "kombu"
    return "own" if str(named).startswith("resilient-") else named


def _seen(queues: Any, stats: Any, tasks: Any) -> WorkerSeen:
    names = [name for name in tasks or () if not str(name).startswith("celery.")]
    ours = sum(f"[{_MARK}=" in str(name) for name in names)
    told = (stats or {}).get("resilience") or {}
    return WorkerSeen(
        queues=tuple(str(queue.get("name")) for queue in queues or ()),
        transport=told.get("redis_transport") or _by_its_url(stats or {}),
        why=str(told.get("why") or ""),
        ours=ours,
        stock=len(names) - ours,
    )
