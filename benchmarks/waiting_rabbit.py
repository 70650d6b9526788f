"""Section ``rabbit``: how late a retry comes that waits in RabbitMQ."""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Iterator

from side import Row, Side, percentile, say

#: Delays of real backoffs: the first levels are what most retries see.
_SHORTEST, _LONGEST = 1.0, 12.0
#: So many tasks a second: what comes back is not to stand behind those that have yet to fail.
_RATE = 50


def rabbit(options: argparse.Namespace) -> Iterator[Row]:
    """Tasks fail and say when their retry is due; on classic queues and on quorum queues."""
    try:
        from tests.servers import RabbitServer, ServerMissing

        server = RabbitServer()
    except (ImportError, ServerMissing) as exc:
        say(f"rabbit: skipped: {exc}")
        return
    try:
        server.start()
        for queue_type in ("classic", "quorum"):
            yield from lateness(server.url(server.add_vhost()), queue_type, options.rabbit)
    finally:
        server.stop()


def lateness(url: str, queue_type: str, number: int) -> Iterator[Row]:
    due: dict[str, float] = {}
    times: list[float] = []
    with Side("ours", url=url, queue_type=queue_type) as side:
        side.start()
        threading.Thread(target=send, args=(side, number), daemon=True).start()
        while len(times) < number:
            kind, task, at, *delay = side.hear()
            if kind == "failed":
                due[task] = float(at) + float(delay[0])
            elif kind == "again":
                times.append(float(at) - due[task])
    say(f"rabbit {queue_type}: p99 {percentile(times, 99):.3f} s of {number}")
    for p in (50, 99, 100):
        most = 2000 if p == 100 else None
        value = percentile(times, p) * 1000
        yield Row("rabbit", "ours", f"late, {queue_type} p{p}", number, value, "ms", most)
    early = sum(seconds < 0 for seconds in times)
    yield Row("rabbit", "ours", f"late, {queue_type}: early", number, early, "tasks", 0)


def send(side: Side, number: int) -> None:
    for n in range(number):
        side.send("late", n, random.uniform(_SHORTEST, _LONGEST))
        time.sleep(1 / _RATE)
