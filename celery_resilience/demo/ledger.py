"""What the tasks have told: the demo's own count, beside and apart from Celery's."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["UNDER_WAY", "Event", "Ledger", "State"]


class State(str, Enum):
    """Where a task is, by its last word."""

    SENT = "sent"  #: no attempt has begun
    RUNNING = "running"  #: an attempt is running
    RETRYING = "retrying"  #: it waits for its next attempt
    DEAD = "dead"  #: it is a dead letter
    DONE = "done"  #: it has succeeded


#: What is to happen to the task is yet to come.
UNDER_WAY = (State.SENT, State.RUNNING, State.RETRYING)


@dataclass(frozen=True)
class Event:
    """What became of one attempt."""

    task: str
    #: Counted from 1, over all lives of the task.
    attempt: int
    state: State
    kind: str = ""
    rule: str = ""
    hint: str = ""
    #: Seconds until the next attempt; None where there is none.
    delay: float | None = None


class Ledger:
    """Every task's state and attempts. Reports come in from many threads."""

    def __init__(self) -> None:
        self.worker_is_ready = False
        self.states: dict[str, State] = {}
        self.attempts: Counter[str] = Counter()
        self.successes: Counter[str] = Counter()
        #: Retries by the verdict's kind, and by the rule that decided.
        self.kinds: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        #: The last events, the newest last; `fresh` are those not taken yet.
        self.recent: deque[Event] = deque(maxlen=50)
        self.fresh: deque[Event] = deque()
        self._retried: set[str] = set()
        self._lock = threading.Lock()

    def expect(self, tasks: Iterable[str]) -> None:
        """Write down what is about to be sent."""
        self.states.update(dict.fromkeys(tasks, State.SENT))

    def add(self, report: Mapping[str, Any]) -> None:
        """Write down what a task, or the worker, tells."""
        with self._lock:
            what, task = report["what"], report["task"]
            if what == "ready":
                self.worker_is_ready = True
            elif what == "started":
                self.states[task] = State.RUNNING
                self.attempts[task] += 1
            elif what == "succeeded":
                self.successes[task] += 1
                self._end(task, State.DONE)
            elif what == "retry":
                self._retried.add(task)
                self.kinds[report["kind"]] += 1
                self.rules[report["rule"]] += 1
                self._end(task, State.RETRYING, report)
            elif what == "dead":
                self._end(task, State.DEAD, report)

    def _end(self, task: str, state: State, report: Mapping[str, Any] | None = None) -> None:
        self.states[task] = state
        facts = {k: v for k, v in (report or {}).items() if k not in ("what", "task")}
        event = Event(task, self.attempts[task], state, **facts)
        self.recent.append(event)
        self.fresh.append(event)

    def in_state(self, *states: State) -> list[str]:
        """The tasks in one of *states*."""
        return [task for task, state in list(self.states.items()) if state in states]

    def by_service(self) -> dict[str, Counter[State]]:
        """How many tasks of each service are in which state."""
        found: dict[str, Counter[State]] = {}
        for task, state in list(self.states.items()):
            found.setdefault(task.partition("-")[0], Counter())[state] += 1
        return found

    def recovered(self, replayed: Iterable[str]) -> int:
        """How many have succeeded after a retry, without being *replayed*."""
        return len(self._retried & set(self.in_state(State.DONE)) - set(replayed))
