"""State that lasts over the attempts of a task: it travels in the message, beside the history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

__all__ = ["LIMIT", "RetryContext", "levels_of"]

#: Characters of JSON that a task's own attributes may have, and those of its ancestors together.
LIMIT = 4096


class RetryContext(MutableMapping[str, Any]):
    """What the attempts of one task tell each other: a dict of JSON values.

    ::

        page = self.context.get("page", 1)
        self.context["page"] = page + 1      # the next attempt goes on from here

    It is kept when the attempt fails, in the message of the retry, and in the dead letter, where
    a replay finds it again. A process that dies takes with it what its attempt has changed.
    What comes back has been through JSON: a tuple is a list then.
    """

    def __init__(
        self, levels: Sequence[Mapping[str, Any]] = (), *, read_only: bool = False
    ) -> None:
        self._own: dict[str, Any] = dict(levels[0]) if levels else {}
        self._ancestors = tuple(levels[1:])
        self._read_only = read_only

    @property
    def parent(self) -> RetryContext | None:
        """What the task that sent this one had in its context by then, to read; else None.

        None too if that task did not use its context. Of a long line of parents, the farthest are
        left out where they have more than 4 KB together.
        """
        return RetryContext(self._ancestors, read_only=True) if self._ancestors else None

    def __getitem__(self, name: str) -> Any:
        return self._own[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._refuse_if_read_only()
        if not isinstance(name, str):
            raise TypeError(f"context: names are texts, got {name!r}")
        _json({**self._own, name: value}, f"context[{name!r}]")
        self._own[name] = value

    def __delitem__(self, name: str) -> None:
        self._refuse_if_read_only()
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __repr__(self) -> str:
        return f"RetryContext({self._own!r})"

    def levels(self) -> list[dict[str, Any]]:
        """Its attributes and those of its ancestors, as JSON keeps them, the nearest first.

        Raises TypeError or ValueError if a value has been changed to what JSON can't keep.
        """
        own = json.loads(_json(self._own, "context"))
        return _trimmed([own, *self._ancestors])

    def below(self) -> list[dict[str, Any]]:
        """The levels of a task that is sent from here."""
        return _trimmed([{}, *self.levels()])

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise TypeError("a parent's context is read-only: write to self.context")


def levels_of(data: object) -> tuple[dict[str, Any], ...]:
    """The levels in *data*, which has come from the network; none where it can't be read."""
    if not isinstance(data, list) or not all(isinstance(level, dict) for level in data):
        return ()
    levels = _trimmed(data)
    return tuple(levels) if any(levels) and len(json.dumps(levels[0])) <= LIMIT else ()


def _trimmed(levels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    own, *ancestors = map(dict, levels or [{}])
    while ancestors and (not ancestors[-1] or len(json.dumps(ancestors)) > LIMIT):
        ancestors.pop()
    return [own, *ancestors]


def _json(value: Mapping[str, Any], where: str) -> str:
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise TypeError(f"{where} takes what JSON can keep: {exc}") from None
    if len(text) > LIMIT:
        raise ValueError(f"{where}: a context holds {LIMIT} characters of JSON, got {len(text)}")
    return text
