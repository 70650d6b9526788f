"""What an id means that somebody has typed: the one that is so, or the only one that begins so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from celery_resilience.errors import ResilienceError

__all__ = ["AmbiguousId", "NoSuchId", "meant"]

T = TypeVar("T")

#: The beginning of an id has to be at least this long to be taken for it.
_SHORTEST = 4
#: So many ids that begin alike are remembered, to be told.
_TOLD = 10


class NoSuchId(ResilienceError, LookupError):
    """Nothing has this id, or one that begins with it."""


class AmbiguousId(NoSuchId):
    """More than one id begins with this."""


def meant(
    ids: Sequence[str],
    things: Iterable[T],
    id_of: Callable[[T], str],
    *,
    what: str,
    where: str,
    unique: bool = False,
) -> list[T]:
    """Those of *things* that *ids* mean, in the order of *ids*; nothing is kept of the others.

    Raises NoSuchId, which tells *what* is not there and *where* it was looked for, or AmbiguousId.
    Where *unique* is true no two things have the same id, and the search ends when all are found.
    """
    for wanted in ids:
        if len(wanted) < _SHORTEST:
            raise NoSuchId(f"{wanted!r} is too short for an id: at least {_SHORTEST} characters")
    exact: dict[str, list[T]] = {}
    begun: dict[str, dict[str, list[T]]] = {wanted: {} for wanted in ids}
    for thing in things:
        name = id_of(thing)
        for wanted in begun:
            if name == wanted:
                exact.setdefault(wanted, []).append(thing)
            elif name.startswith(wanted) and (name in begun[wanted] or len(begun[wanted]) < _TOLD):
                begun[wanted].setdefault(name, []).append(thing)
        if unique and len(exact) == len(begun):
            break
    for wanted in ids:
        if wanted not in exact and not begun[wanted]:
            raise NoSuchId(f"no {what} {wanted} in {where}")
    # Two beginnings may mean the same.
    chosen: dict[str, list[T]] = {}
    for wanted in ids:
        found = exact.get(wanted) or _only(wanted, begun[wanted])
        chosen[id_of(found[0])] = found[:1] if unique else found
    return [thing for found in chosen.values() for thing in found]


def _only(wanted: str, begun: dict[str, list[T]]) -> list[T]:
    if len(begun) > 1:
        raise AmbiguousId(
            f"{wanted} is how several ids begin: {', '.join(sorted(begun))}; type more of it"
        )
    return next(iter(begun.values()))
