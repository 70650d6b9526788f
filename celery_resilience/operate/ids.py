"""Which thing a typed id means, and how much of an id has to be shown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from celery_resilience.errors import ResilienceError

__all__ = ["AmbiguousId", "Names", "NoSuchId", "length_shown", "resolve_ids", "shortened"]

T = TypeVar("T")

#: So much of an id is shown where that tells all of a list apart, else more of it.
_SHOWN = 8
#: So many ids that begin alike are remembered, for the error message.
_TOLD = 10


class NoSuchId(ResilienceError, LookupError):
    """Nothing has this id, or one that begins with it."""

    __module__ = "celery_resilience.ids"  # stored errors name it


class AmbiguousId(NoSuchId):
    """More than one id begins with this."""


class Names:
    """Names the letters of one listing, so that none hides another: a name is an id, and which of
    several equal letters it is. One that has another's id, and is not the same, gets one of its
    own."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def name(self, id_: str, digest: str, otherwise: str) -> tuple[str, int]:
        """The id of a letter whose header says *id_*, and its number among its equals, from 1 on;
        *otherwise* is what it is called if another letter has that id."""
        known, number = self._seen.get(id_, (digest, 0))
        if known != digest and id_ != otherwise:
            return self.name(otherwise, digest, otherwise)
        self._seen[id_] = (known, number + 1)
        return id_, number + 1


@dataclass
class _Candidates(Generic[T]):
    """What one id that was typed may mean."""

    exact: list[T] = field(default_factory=list)
    of_task: list[T] = field(default_factory=list)
    begun: dict[str, list[T]] = field(default_factory=dict)
    begun_tasks: dict[str, list[T]] = field(default_factory=dict)

    def add_begun(self, known: dict[str, list[T]], name: str, thing: T) -> None:
        if name in known or len(known) < _TOLD:
            known.setdefault(name, []).append(thing)


def resolve_ids(
    ids: Sequence[str],
    things: Iterable[T],
    id_of: Callable[[T], str],
    *,
    what: str,
    where: str,
    unique: bool = False,
    task_of: Callable[[T], str] | None = None,
    at: Callable[[T], float] | None = None,
) -> list[T]:
    """Those of *things* that *ids* mean, in the order of *ids*; nothing is kept of the others.

    An id means the thing that has it, else the newest (by *at*) of the task that has it (by
    *task_of*), else the only one whose id, or whose task's, begins so. Raises NoSuchId, which
    says *what* is missing and *where* it was searched, or AmbiguousId. Where *unique* is
    true no two things have the same id, and the search ends when all are found.
    """
    if not all(ids):
        raise NoSuchId(f"empty id of a {what}")
    found: dict[str, _Candidates[T]] = {wanted: _Candidates() for wanted in ids}
    missing = set(found)
    for thing in things:
        name, task = id_of(thing), "" if task_of is None else task_of(thing)
        for wanted, candidates in found.items():
            if name == wanted:
                candidates.exact.append(thing)
                missing.discard(wanted)
            elif _begins(name, wanted) and not (unique and _is_copy(name, candidates.begun)):
                candidates.add_begun(candidates.begun, name, thing)
            if task and task == wanted:
                candidates.of_task = _newer(candidates.of_task, thing, at)
            elif task and task.startswith(wanted):
                before = candidates.begun_tasks.get(task, [])
                candidates.begun_tasks.pop(task, None)
                for one in _newer(before, thing, at):
                    candidates.add_begun(candidates.begun_tasks, task, one)
        if unique and not missing:
            break
    # Two beginnings may mean the same.
    chosen: dict[str, list[T]] = {}
    for wanted, candidates in found.items():
        those = _those(wanted, candidates, id_of, f"no {what} {wanted} in {where}")
        chosen[id_of(those[0])] = those[:1] if unique else those
    return [thing for those in chosen.values() for thing in those]


def _those(
    wanted: str, candidates: _Candidates[T], id_of: Callable[[T], str], missing: str
) -> list[T]:
    if candidates.exact or candidates.of_task:
        return candidates.exact or candidates.of_task
    begun = {**candidates.begun}
    for task, those in candidates.begun_tasks.items():
        if id_of(those[0]) not in begun:
            begun[task] = those
    if not begun:
        raise NoSuchId(missing)
    if len(begun) > 1:
        raise AmbiguousId(
            f"{wanted} matches several ids: {', '.join(sorted(begun))}; type more characters"
        )
    return next(iter(begun.values()))


def _newer(before: list[T], thing: T, at: Callable[[T], float] | None) -> list[T]:
    """The newer of the one before and *thing*, which lay behind it."""
    return before if before and at is not None and at(before[0]) > at(thing) else [thing]


def _begins(name: str, wanted: str) -> bool:
    """Whether *wanted* is how *name* begins: ``3f9a`` of ``3f9a0c``, ``3f9a.2`` of ``3f9a0c.2``."""
    if name.startswith(wanted):
        return True
    stem, dot, number = wanted.rpartition(".")
    return bool(dot and stem) and name.startswith(stem) and name.endswith(f".{number}")


def _is_copy(name: str, known: Collection[str]) -> bool:
    stem, _, number = name.rpartition(".")
    return number.isdigit() and stem in known


def length_shown(ids: Iterable[str]) -> int:
    """How much of each of *ids* has to be shown to tell them apart."""
    stems = sorted({_parted(name)[0] for name in ids})
    length = _SHOWN
    for one, other in itertools.pairwise(stems):
        if one[:length] == other[:length]:
            alike = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                         min(len(one), len(other)))  # fmt: skip
            length = max(length, alike + 1)
    return length


def shortened(name: str, length: int) -> str:
    """*length* characters of an id, and which of several equal ones it is."""
    stem, number = _parted(name)
    return stem[:length] + number


def _parted(name: str) -> tuple[str, str]:
    stem, dot, number = name.rpartition(".")
    return (stem, dot + number) if dot and number.isdigit() and len(stem) >= _SHOWN else (name, "")
