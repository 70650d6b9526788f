"""Which dead letters or scheduled retries are meant: the filters of ``dlq`` and ``retries``.

Every filter that is given has to accept; what none is given for is all of them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, time, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any, Union

from celery_resilience.messages.envelope import Envelope
from celery_resilience.policy.decision import Reason

__all__ = ["Filters", "argument", "moment", "seconds"]

#: The names of a task's positional parameters, by its name; empty where they are not known.
Parameters = Callable[[str], Sequence[str]]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_PART = re.compile(
    r"(\d+(?:\.\d*)?)\s*"
    r"(?:(s)(?:ec(?:ond)?s?)?|(m)(?:in(?:ute)?s?)?|(h)(?:(?:ou)?rs?)?|(d)(?:ays?)?|(w)(?:eeks?)?)\s*"
)


def _unknown(task: str) -> Sequence[str]:
    return ()


#: One, or several of which one has to accept.
Texts = Union[str, "Sequence[str]", None]


@dataclass(frozen=True)
class Filters:
    """Which letters or scheduled retries are meant; None is "not given".

    Where several are given for one filter, one of them has to accept; of *args* each.
    """

    #: A pattern of task names: ``shop.*``.
    task: Texts = None
    #: A pattern of errors: the exception's type, with or without its module, or
    #: ``Name: what it said``.
    error: Texts = None
    #: The queue that the message came from.
    queue: Texts = None
    #: When it failed last, in seconds since the epoch: not before this, and before this.
    since: float | None = None
    until: float | None = None
    #: Arguments, each with the text of its value: ``("customer", "42")``.
    args: tuple[tuple[str, str], ...] = ()
    #: Letters only: why it died.
    reason: Reason | Sequence[Reason] | None = None
    #: How their group begins, or the fingerprint.
    group: Texts = None

    def __bool__(self) -> bool:
        """Whether any is given."""
        return any(getattr(self, f.name) not in (None, ()) for f in fields(self))

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that are meant; all where there is none."""
        return _several(self.queue)

    def accept(
        self,
        envelope: Envelope,
        *,
        error: str,
        message: str,
        at: float,
        reason: Reason | None = None,
        groups: Callable[[], Sequence[str]] = tuple,
        parameters: Parameters = _unknown,
    ) -> bool:
        """Whether a message with this last *error*, which it had *at*, is meant.

        *groups* tells its group and its fingerprint, and is asked only if need be.
        """
        return (
            _any(self.reason, lambda wanted: wanted is reason)
            and _any(self.queue, lambda wanted: wanted == envelope.queue)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and _any(self.task, lambda pattern: fnmatchcase(envelope.text_field("task"), pattern))
            and _any(self.error, lambda pattern: _failed_so(pattern, error, message))
            and _any(self.group, lambda how: any(name.startswith(how) for name in groups()))
            # Last, for it opens the body.
            and (not self.args or _called_so(self.args, envelope, parameters))
        )


def _several(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def _any(given: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether one of the *given* accepts; none is given: all are accepted."""
    several = _several(given)
    return not several or any(map(accepts, several))


def _failed_so(pattern: str, error: str, message: str) -> bool:
    name = error.rpartition(".")[2]
    return any(fnmatchcase(said, pattern) for said in (error, name, f"{name}: {message}"))


def _called_so(
    wanted: Iterable[tuple[str, str]], envelope: Envelope, parameters: Parameters
) -> bool:
    args, kwargs, *_ = envelope.decoded_arguments() or _shown(envelope)
    given: dict[str, Any] = {str(n): value for n, value in enumerate(args)}
    given.update(zip(parameters(envelope.text_field("task")), args, strict=False))
    given.update(kwargs)
    return all(name in given and _is(given[name], text) for name, text in wanted)


def _shown(envelope: Envelope) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of a body that is not opened, as far as its sender has let them be shown."""
    return (
        _literal(envelope.text_field("argsrepr"), (list, tuple), ()),
        _literal(envelope.text_field("kwargsrepr"), (dict,), {}),
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
    # True is 1 to Python, but not to a user.
    return isinstance(meant, bool) == isinstance(value, bool) and bool(meant == value)


# What is typed


def argument(text: str) -> tuple[str, str]:
    """The name and the value in ``customer=42``; raises ValueError where there is no ``=``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"an argument is written name=value, got {text!r}")
    return name.strip(), value


def seconds(text: str) -> float:
    """A span of time, in seconds: ``90``, ``90s``, ``5min``, ``1.5h``, ``2d12h``, ``2w``."""
    said = text.strip().lower()
    if re.fullmatch(r"\d+(?:\.\d*)?", said):
        return float(said)
    span = _span(said)
    if span is None:
        raise ValueError(f"a span of time is written 90s, 5min, 1.5h, 2d or 2w, got {text!r}")
    return span


def _span(said: str) -> float | None:
    total, at = 0.0, 0
    while part := _PART.match(said, at):
        number, *units = part.groups()
        total += float(number) * _UNITS[next(unit for unit in units if unit)]
        at = part.end()
    return total if at and at == len(said) else None


def moment(text: str, now: float) -> float:
    """A moment, in seconds since the epoch: ``2h`` ago, ``today``, ``12:36`` (the last one that
    was), or ``2026-03-01 14:30`` by the local clock, unless it tells its zone."""
    said = text.strip().lower()
    try:
        span = _span(said)
        if span is not None:
            return now - span
        here = datetime.fromtimestamp(now)
        midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
        if said in ("now", "today", "yesterday"):
            days = said == "yesterday"
            return now if said == "now" else (midnight - timedelta(days=days)).timestamp()
        if re.match(r"\d{1,2}:\d", said):
            clock = time.fromisoformat(said.zfill(len(said) + (said[1] == ":")))
            told = datetime.combine(midnight, clock)
            last = told if told.timestamp() <= now else told - timedelta(days=1)
            return last.timestamp()
        told = datetime.fromisoformat(re.sub(r"[zZ]\Z", "+00:00", text.strip()))
        epoch = datetime.fromtimestamp(0, timezone.utc)
        return (told.astimezone(timezone.utc) - epoch) / timedelta(seconds=1)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"a moment is written 2h or 5min (ago), today, 12:36 or 2026-03-01T14:30, got {text!r}"
        ) from None
