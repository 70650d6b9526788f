"""Dead letters by their cause, whichever tasks it has hit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.policy.decision import Reason

__all__ = ["Group", "Span", "grouped"]


@dataclass
class Span:
    """How many letters there are, and when the first and the last were written."""

    count: int = 0
    #: In seconds since the epoch; 0.0: unknown.
    first: float = 0.0
    last: float = 0.0

    def add(self, at: float) -> None:
        """Count one more, written *at*."""
        self.count += 1
        if at > 0:
            self.first = min(self.first or at, at)
            self.last = max(self.last, at)


@dataclass
class Group(Span):
    """The letters that have one cause: the same type of error in the same place of own code."""

    #: What ``--group`` takes, or its beginning.
    name: str = ""
    #: The exception's type, ``module.Name``; empty where there was none: then see *reason*.
    error: str = ""
    #: The innermost frame of the tasks' own code, ``module.function``.
    frame: str = ""
    reason: Reason = Reason.PERMANENT
    #: The newest letter, for an example of the message.
    newest: DeadLetter | None = None
    #: The tasks that it has hit: their fingerprint by their name.
    fingerprints: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Span] = field(default_factory=dict)


def grouped(letters: Iterable[DeadLetter]) -> list[Group]:
    """The groups of *letters*, the largest first; memory is taken by groups, not by letters."""
    groups: dict[str, Group] = {}
    for letter in letters:
        group = groups.get(letter.group)
        if group is None:
            group = groups[letter.group] = Group(
                name=letter.group, error=letter.error.error, frame=letter.error.frame,
                reason=letter.reason,
            )  # fmt: skip
        if group.newest is None or letter.at >= group.newest.at:
            group.newest = letter
        group.add(letter.at)
        group.fingerprints.setdefault(letter.task, letter.fingerprint)
        group.tasks.setdefault(letter.task, Span()).add(letter.at)
    for group in groups.values():
        ordered = sorted(group.tasks.items(), key=lambda item: (-item[1].count, item[0]))
        group.tasks = dict(ordered)
    return sorted(groups.values(), key=lambda group: (-group.count, group.name))
