"""Section ``late``: how late a retry comes that waits in Redis; and what it costs to look for it.

Run as ``python waiting_late.py``, this is one mover: it lets retries wait, and moves what is due.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kombu import Connection
from retries import HELD, Retries, waiting
from side import Row, Side, percentile, say

from celery_resilience.brokers.redis.broker import RedisBroker
from celery_resilience.testing.server import leashed
from celery_resilience.worker.lease import HousekeepingThread

#: Retries due in a second, of all movers together.
_RATE = 200
#: They wait this long at most: what is due soonest, nobody but its own worker may know of.
_LONGEST = 6.0
_QUEUE = "late"


def late(options: argparse.Namespace) -> Iterator[Row]:
    """One mover alone, then four, with 100,000 that wait for hours."""
    with Side("ours", options.redis_server) as side:
        side.start()
        retries = Retries(side)
        retries.fill(options.late, 7200, 14400)
        for movers in (1, 4):
            for row in lateness("late", side, retries, options.late, movers, options.seconds):
                required = 50 if row.what.endswith("p99") else None
                yield row._replace(most=required or row.most)


def lateness(
    section: str, side: Side, retries: Retries, n: int, movers: int, seconds: float
) -> Iterator[Row]:
    """For *seconds*, retries are let wait for up to six; how late they come."""
    told = {
        "rate": _RATE / movers,
        "seconds": seconds,
        "template": retries.another("@MARK@"),
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    processes = [
        subprocess.Popen(
            leashed([sys.executable, __file__, side.url]),
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(movers)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # all have started before any begins
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
        expected = int(_RATE / movers * seconds) * movers
        times = arrivals(side.redis, expected, seconds + _LONGEST + 30)
        yield from figures(section, n, movers, times)
        if section == "late":
            yield from idle(side, n, movers)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        side.redis.delete(_QUEUE)


def figures(section: str, n: int, movers: int, times: list[float]) -> Iterator[Row]:
    name = f"late, {movers} movers" if movers > 1 else "late, 1 mover"
    for p in (50, 99, 100):
        yield Row(section, "ours", f"{name} p{p}", n, percentile(times, p) * 1000, "ms")
    early = sum(seconds < 0 for seconds in times)
    yield Row(section, "ours", f"{name}: early", n, early, "tasks", 0)
    say(f"{section} {n:,}: {len(times)} with {movers} movers, p99 {percentile(times, 99):.4f} s")


def arrivals(client: Any, expected: int, timeout: float) -> list[float]:
    """How late each comes out of its list: it says itself when it is due."""
    end = time.monotonic() + timeout
    times: list[float] = []
    while len(times) < expected:
        popped = client.brpop(_QUEUE, timeout=1)
        now = time.time()
        if popped is not None:
            times.append(now - float(json.loads(popped[1])["headers"]["id"].split()[0]))
        elif time.monotonic() > end:
            raise SystemExit(f"only {len(times)} of {expected} retries have come")
    return times


def idle(side: Side, n: int, movers: int, seconds: float = 12) -> Iterator[Row]:
    """Commands a second that a worker sends while many wait and none is due.

    What a script does inside Redis is no command that anybody has sent.
    """
    time.sleep(1)  # the last one that was expected has come
    client: Any = side.redis
    before = client.info("commandstats")
    time.sleep(seconds)
    after = client.info("commandstats")
    counts = {
        name: value["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, value in after.items()
    }
    sent = counts.get("cmdstat_evalsha", 0) / movers / seconds
    inside = (sum(counts.values()) - counts.get("cmdstat_info", 0)) / movers / seconds - sent
    what = f"idle commands of each of {movers}"
    yield Row("late", "ours", what, n, sent, "/s", 3)
    yield Row("late", "ours", f"{what}, inside scripts", n, inside, "/s")


def mover() -> None:
    """A worker's mover, and retries that it lets wait at its share of the rate."""
    connection: Any = Connection(sys.argv[1])
    connection.connect()
    broker = RedisBroker(connection)
    housekeeper = broker.housekeeper(broker.lease_owner())
    moving = HousekeepingThread()
    moving.use(housekeeper)
    held = waiting(connection.default_channel.client)
    print("ready", flush=True)
    told = json.loads(sys.stdin.readline())
    began = time.monotonic()
    for number in range(int(told["rate"] * told["seconds"])):
        time.sleep(max(0.0, began + number / told["rate"] - time.monotonic()))
        delay = random.uniform(0.05, _LONGEST)
        # Two that are due at the same microsecond are still two.
        mark = f"{time.time() + delay:.6f} {uuid.uuid4()}"
        payload = told["template"].replace("@MARK@", mark)
        held.hold(HELD, "", True, payload, _QUEUE, delay)
        housekeeper.expect(delay)
    time.sleep(3600)  # until it is ended


if __name__ == "__main__":
    mover()
