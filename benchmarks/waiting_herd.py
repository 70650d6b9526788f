"""Section ``herd``: when the retries of tasks are due that fail at the same moment."""

from __future__ import annotations

import argparse
import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import redis
from side import WAITING, Row, Side, say

#: The ceiling of the backoff in seconds, as the task has it, and what is counted together.
_CEILING, _BUCKET = 60.0, 0.1


def herd(options: argparse.Namespace) -> Iterator[Row]:
    """The same options on both sides: ``retry_backoff=60, retry_jitter=True``.

    No machine fails ten thousand tasks at once. So each due time is taken from the moment that
    it was written: that is when they would be due if all had failed at the same one.
    """
    for side in ("ours", "stock"):
        with Side(side, options.redis_server) as it:
            say(f"herd {side}: {options.herd:,}")
            delays = list(written(it, options.herd))
        buckets = Counter(int(delay / _BUCKET) for delay in delays)
        mean = len(delays) * _BUCKET / _CEILING
        fullest = max(buckets.values())
        n = len(delays)
        required = 3 if side == "ours" else None
        yield Row("herd", side, "fullest bucket/mean", n, fullest / mean, "x", required)
        yield Row("herd", side, "fullest bucket", n, fullest / n * 100, "%")
        yield Row("herd", side, "buckets in use", n, len(buckets), "of 600")


def written(side: Side, number: int) -> Iterator[float]:
    """The delay of each retry, as Redis is told it."""
    seen: list[float] = []
    ready, enough = threading.Event(), threading.Event()
    side.start()  # it answers before the herd stands in front of its first probe
    watcher = threading.Thread(target=watch, args=(side, number, seen, ready, enough), daemon=True)
    watcher.start()
    ready.wait(10)
    for _ in range(number):
        side.send("herd")
    if not enough.wait(600):
        raise SystemExit(f"herd {side.side}: only {len(seen)} of {number} have failed")
    side.stop()
    yield from seen


def watch(
    side: Side, number: int, seen: list[float], ready: threading.Event, enough: threading.Event
) -> None:
    assert side.server is not None
    client: Any = redis.Redis.from_url(side.server.url)
    with client.monitor() as monitor:
        ready.set()
        for event in monitor.listen():
            delay = delay_in(event, side.side)
            if delay is not None:
                seen.append(delay)
            if len(seen) >= number:
                enough.set()
                return


def delay_in(event: dict[str, Any], side: str) -> float | None:
    """The delay that a command writes; None if it writes no retry."""
    command: str = event["command"]
    if side == "ours":
        # Nested in the script that holds it.
        if not command.startswith(f"ZADD {WAITING} "):
            return None
        return float(command.split(" ", 3)[2]) - event["time"]
    if not command.startswith("LPUSH work "):
        return None
    headers = json.loads(command.split(" ", 2)[2])["headers"]
    if headers.get("retries") != 1:
        return None
    if headers["eta"] is None:  # a delay of 0
        return 0.0
    return max(0.0, datetime.fromisoformat(headers["eta"]).timestamp() - event["time"])
