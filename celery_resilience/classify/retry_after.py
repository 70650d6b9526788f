"""The delay that a server asks for, in every dialect that we have met.

Names are compared in lower case. A header that can't be read counts as absent, and the next
dialect is asked. Dates and epochs are measured against the answer's own ``Date`` where it has one:
our clock and the server's need not agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import islice
from math import isfinite
from typing import cast

from celery_resilience.classify.reading import called, peek, text

__all__ = ["DIALECTS", "fold", "server_delay"]

#: Said for this answer alone, in milliseconds.
MILLISECONDS = (
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "x-amz-retry-after",
    "grpc-retry-pushback-ms",
)
#: The state of a quota, which services send along with every answer: it says how long to wait
#: only where the answer was a rate limit.
EPOCHS = ("x-ratelimit-reset", "x-rate-limit-reset")
BUCKETS = ("requests", "tokens")
ANTHROPIC = re.compile(r"anthropic-(?:ratelimit-)?([a-z-]+)-reset")
VETOES = ("x-should-retry", "stripe-should-retry")

#: Header, how it is written, and when it is believed; in the order in which they are asked.
DIALECTS = (
    *((name, "milliseconds", "any error") for name in MILLISECONDS),
    ("retry-after", "seconds, or an HTTP date", "any error"),
    ("ratelimit-reset", "seconds", "rate limits"),
    *((name, "epoch if above 1e9, else seconds", "rate limits") for name in EPOCHS),
    ("x-ratelimit-reset-after", "seconds", "rate limits"),
    *(
        (f"x-ratelimit-reset-{bucket}", "a duration: 6m0s, 120ms", "rate limits")
        for bucket in BUCKETS
    ),
    ("anthropic-ratelimit-*-reset", "ISO 8601", "rate limits"),
)

_WANTED = frozenset(
    [name for name, _, _ in DIALECTS]
    + [f"x-ratelimit-remaining-{bucket}" for bucket in BUCKETS]
    + ["x-ratelimit-remaining", "date", *VETOES]
)
_MOST = 300  # a real answer has 20 headers; an endless one must end
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_PIECE = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PIECE.pattern})+")

Clock = Callable[[], float]


def fold(headers: object) -> dict[str, str]:
    """The headers that matter here, by lower-case name; empty for what is no header map."""
    folded: dict[str, str] = {}
    for pair in _pairs(headers):
        try:
            key, value = cast("tuple[object, object]", pair)
        except BaseException:
            continue
        name = (text(key) or "").lower()
        if name in _WANTED or name.startswith("anthropic-ratelimit-"):
            written = text(value)
            if written is not None:
                folded.setdefault(name, written.strip())
    return folded


def server_delay(headers: Mapping[str, str], clock: Clock, *, quota: bool) -> float | None:
    """The seconds to wait that folded *headers* ask for, None if they do not.

    *quota* says that the answer was a rate limit, so that the state of the quota counts too.
    """
    if not headers:
        return None
    now = _Now(headers, clock)
    for name in MILLISECONDS:
        if (delay := _seconds(headers.get(name), 0.001)) is not None:
            return delay
    asked = headers.get("retry-after")
    if (delay := _seconds(asked)) is not None:
        return delay
    if asked is not None and (delay := now.until(_http_date(asked))) is not None:
        return delay
    return _quota_delay(headers, now) if quota else None


def _quota_delay(headers: Mapping[str, str], now: _Now) -> float | None:
    if (delay := _seconds(headers.get("ratelimit-reset"))) is not None:
        return delay
    for name in EPOCHS:
        reset = _seconds(headers.get(name))
        if reset is not None and reset > 1e11:  # some write the epoch in milliseconds
            reset /= 1000
        delay = now.until(reset) if reset is not None and reset > 1e9 else reset
        if delay is not None:
            return delay
    if (delay := _seconds(headers.get("x-ratelimit-reset-after"))) is not None:
        return delay
    buckets = {
        bucket: (
            _duration(headers.get(f"x-ratelimit-reset-{bucket}")),
            headers.get(f"x-ratelimit-remaining-{bucket}"),
        )
        for bucket in BUCKETS
    }
    if (delay := _emptiest(buckets)) is not None:
        return delay
    return _emptiest(
        {
            name: (now.until(_iso_date(value)), headers.get(name[: -len("reset")] + "remaining"))
            for name, value in headers.items()
            if ANTHROPIC.fullmatch(name)
        }
    )


def _emptiest(buckets: Mapping[str, tuple[float | None, str | None]]) -> float | None:
    """The longest wait among the buckets that have run dry, or among all if none says so."""
    known = [(delay, left == "0") for delay, left in buckets.values() if delay is not None]
    dry = [delay for delay, is_dry in known if is_dry]
    return max(dry or [delay for delay, _ in known], default=None)


class _Now:
    """The moment at which the server answered, looked up once and only if a date asks for it."""

    def __init__(self, headers: Mapping[str, str], clock: Clock) -> None:
        self.headers = headers
        self.clock = clock

    def until(self, moment: float | None) -> float | None:
        if moment is None:
            return None
        date = self.headers.get("date")
        answered = _http_date(date) if date is not None else None
        delay = moment - (self.clock() if answered is None else answered)
        return delay if isfinite(delay) and delay >= 0 else None


def _pairs(headers: object) -> Iterable[object]:
    if headers is None or isinstance(headers, (str, bytes)):
        return ()
    # httpx decodes every name and value again in items(); its raw pairs are at hand.
    raw = peek(headers, "raw")
    source = raw if type(raw) is list else called(headers, "items")
    if source is None:
        source = headers
    found: list[object] = []
    try:
        found.extend(islice(source, _MOST))  # type: ignore[call-overload]
    except BaseException:
        return ()
    return found


def _seconds(written: str | None, unit: float = 1.0) -> float | None:
    if written is None or len(written) > 100:
        return None
    try:
        seconds = float(written) * unit
    except ValueError:
        return None
    return abs(seconds) if isfinite(seconds) and seconds >= 0 else None


def _duration(written: str | None) -> float | None:
    if written is None or len(written) > 100:
        return None
    if _DURATION.fullmatch(written) is None:
        return _seconds(written)
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _PIECE.findall(written))
    return seconds if isfinite(seconds) else None


def _http_date(written: str) -> float | None:
    return _moment(parsedate_to_datetime, written)


def _iso_date(written: str) -> float | None:
    return _moment(datetime.fromisoformat, re.sub("[zZ]$", "+00:00", written))


def _moment(parse: Callable[[str], datetime], written: str) -> float | None:
    if len(written) > 100:
        return None
    try:
        moment = parse(written)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
