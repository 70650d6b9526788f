"""Which dead letters, or which waiting retries, are meant: the filters of ``dlq`` and ``retries``.

Every filter that is given has to accept; what none is given for is all of them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any

from celery_resilience.decision import Reason
from celery_resilience.envelope import Envelope

__all__ = ["Filters", "argument", "moment", "seconds"]

#: The names of a task's positional parameters, by its name; empty where nobody knows them.
Parameters = Callable[[str], Sequence[str]]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"(?:\d+(?:\.\d*)?[smhd])+\Z")


def _unknown(task: str) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Filters:
    """What letters or waiting retries have to be like; None is "not given"."""

    #: A pattern of task names: ``shop.*``.
    task: str | None = None
    #: A pattern of errors: the exception's type, with or without its module, or
    #: ``Name: what it said``.
    error: str | None = None
    #: The queue that the message came from.
    queue: str | None = None
    #: When it failed last, in seconds since the epoch: not before this, and before this.
    since: float | None = None
    until: float | None = None
    #: Arguments, each with the text of its value: ``("customer", "42")``.
    args: tuple[tuple[str, str], ...] = ()
    #: Letters only: why it died.
    reason: Reason | None = None

    def __bool__(self) -> bool:
        """Whether any is given."""
        return any(getattr(self, f.name) not in (None, ()) for f in fields(self))

    def accept(
        self,
        envelope: Envelope,
        *,
        error: str,
        message: str,
        at: float,
        reason: Reason | None = None,
        parameters: Parameters = _unknown,
    ) -> bool:
        """Whether a message with this last *error*, which it had *at*, is meant."""
        return (
            (self.reason is None or self.reason is reason)
            and (self.queue is None or self.queue == envelope.queue)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and (self.task is None or fnmatchcase(envelope.told("task"), self.task))
            and (self.error is None or _failed_so(self.error, error, message))
            # Last, for it opens the body.
            and (not self.args or _called_so(self.args, envelope, parameters))
        )


def _failed_so(pattern: str, error: str, message: str) -> bool:
    name = error.rpartition(".")[2]
    return any(fnmatchcase(said, pattern) for said in (error, name, f"{name}: {message}"))


def _called_so(
    wanted: Iterable[tuple[str, str]], envelope: Envelope, parameters: Parameters
) -> bool:
    args, kwargs, *_ = envelope.opened() or _shown(envelope)
    given: dict[str, Any] = {str(n): value for n, value in enumerate(args)}
    given.update(zip(parameters(envelope.told("task")), args, strict=False))
    given.update(kwargs)
    return all(name in given and _is(given[name], text) for name, text in wanted)


def _shown(envelope: Envelope) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a body that is not opened, as far as its sender has let them be shown."""
    return (
        _literal(envelope.told("argsrepr"), (list, tuple), ()),
        _literal(envelope.told("kwargsrepr"), (dict,), {}),
    )


def _literal(text: str, kinds: tuple[type, ...], otherwise: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return otherwise
    return value if isinstance(value, kinds) else otherwise


def _is(value: object, text: str) -> bool:
    if isinstance(value, str):
        return value == text
    if str(value) == text:
        return True
    try:
        meant = json.loads(text)
    except ValueError:
        return False
    # True is 1 to Python, and to nobody else.
    return isinstance(meant, bool) == isinstance(value, bool) and bool(meant == value)


# What is typed


def argument(text: str) -> tuple[str, str]:
    """The name and the value in ``customer=42``; raises ValueError where there is no ``=``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"an argument is written name=value, got {text!r}")
    return name.strip(), value


def seconds(text: str) -> float:
    """A span of time, in seconds: ``90``, ``90s``, ``1.5h``, ``2d12h``."""
    said = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d*)?", said):
        return float(said)
    if not _SPAN.match(said):
        raise ValueError(f"a span of time is written 90s, 10m, 1.5h or 2d, got {text!r}")
    return sum(float(part[:-1]) * _UNITS[part[-1]] for part in re.findall(r"[\d.]+[smhd]", said))


def moment(text: str, now: float) -> float:
    """A moment, in seconds since the epoch: ``2h`` ago, or ``2026-03-01 14:30`` by the local
    clock, unless it tells its zone."""
    said = text.strip()
    if _SPAN.match(said.lower()):
        return now - seconds(said)
    try:
        told = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", said))
        epoch = datetime.fromtimestamp(0, timezone.utc)
        return (told.astimezone(timezone.utc) - epoch) / timedelta(seconds=1)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"a moment is written 2h (ago) or 2026-03-01T14:30, got {text!r}"
        ) from None
