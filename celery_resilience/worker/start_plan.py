"""Whether a message that was redelivered starts when its turn has come: facts in, a plan out.

The crash of a whole worker does not name the culprit: all that it had in hand is redelivered, and
counted. So that innocent neighbours are not dead-lettered with the culprit, a message that was
redelivered twice, or may start for the last time, runs in isolation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from celery_resilience.messages.history import History

__all__ = ["AskPeers", "Counting", "Facts", "Plan", "Requeue", "Start", "counted", "plan_start"]

#: How long a message waits for the one that runs in isolation, in seconds; then it is tried again.
TURN = 1.0


class Counting(Enum):
    """What a broker lets a worker count."""

    #: Each start is recorded where the message is held: those count whose worker has died.
    STARTS = auto()
    #: The broker says that it redelivers. The count is published with the message, before it
    #: starts: whatever the worker has in hand when it dies is counted too.
    REDELIVERIES = auto()


@dataclass(frozen=True)
class Facts:
    """What is known when the pool has a slot for the message."""

    history: History
    #: In seconds since the epoch.
    now: float
    #: ``max_worker_losses``: with so many redeliveries it starts no more.
    limit: int
    #: The broker says so, and the worker knows no better reason than a crash.
    redelivered: bool = True
    #: It was counted and published, and a worker has held it until its turn, by its eta.
    waited: bool = False
    #: Another one that was redelivered runs in this worker.
    others_run: bool = False
    #: One of those runs in isolation.
    isolated_runs: bool = False


@dataclass(frozen=True)
class AskPeers:
    """It is at its limit: whether it is poison, other workers and the result store may know."""

    history: History


@dataclass(frozen=True)
class Requeue:
    """It is published again, with *history*, and comes back in *delay* seconds."""

    history: History
    delay: float


@dataclass(frozen=True)
class Start:
    """Its body may start: in isolation, or beside others that were redelivered for the first time.
    Where starts are recorded, *history* is what is written."""

    history: History
    isolated: bool


Plan = AskPeers | Requeue | Start


def plan_start(facts: Facts, counting: Counting) -> Plan:
    """What becomes of the message that *facts* are about."""
    recorded = counting is Counting.STARTS
    count = recorded or (facts.redelivered and not facts.waited)
    history = counted(facts.history, facts.now) if count else facts.history
    if history.elsewhere or history.crash_redeliveries >= facts.limit:
        return AskPeers(history)
    isolated = history.crash_redeliveries > 1 or history.crash_redeliveries + 1 >= facts.limit
    if facts.others_run if isolated else facts.isolated_runs:
        # On its first time it is counted, though it has not started: else it would come back as
        # one that was never redelivered. Later that would make a dead letter of it.
        return Requeue(facts.history if recorded and isolated else history, TURN)
    if not recorded and (facts.redelivered or facts.waited):
        return Requeue(history, 0)
    return Start(history, isolated)


def counted(history: History, now: float) -> History:
    """*history*, of a message that was redelivered once more."""
    first = now if history.redelivered_at is None else history.redelivered_at
    again = history.crash_redeliveries + 1
    return replace(history, crash_redeliveries=again, redelivered_at=first)
