"""Section ``broker``: what waiting retries cost in Redis, from a thousand to a million."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from retries import HELD, Retries
from side import WAITING, Row, Side, percentile, say
from waiting_late import lateness
from waiting_worker import fresh, warm_up


def broker(options: argparse.Namespace) -> Iterator[Row]:
    """The same set grows from step to step; a worker is there only to be probed."""
    with Side("ours", options.redis_server) as idle, Side("ours", options.redis_server) as side:
        for each in (idle, side):
            each.start()
        warm_up(idle)
        retries = Retries(side)
        yield Row("broker", "ours", "message", 1, retries.size, "bytes")
        empty = memory(side)
        for n in options.steps:
            say(f"broker: up to {n:,}")
            retries.fill(n - int(side.redis.zcard(WAITING)), 7200, 14400)
            each = (memory(side) - empty) / n
            required = 1.3 if n >= 100_000 else None
            yield Row("broker", "ours", "memory", n, each, "bytes")
            yield Row("broker", "ours", "memory/payload", n, each / retries.size, "x", required)
            yield from holding(retries, n)
            yield from moving(retries, n, options)
            yield from lateness("broker", side, retries, n, movers=1, seconds=6)
            side.start()
            for _ in range(100):
                side.probe()
            yield Row("broker", "ours", "rss", n, side.rss(), "MiB")
            yield from fresh("broker", idle, side, n, options)
            side.stop()


def holding(retries: Retries, n: int, times: int = 1000) -> Iterator[Row]:
    """How long it takes to let one more wait, and its original go."""
    taken = []
    for number in range(times):
        tag, payload = str(number), retries.another()
        retries.redis.hset(HELD[0], tag, payload)
        began = time.perf_counter()
        retries.waiting.hold(HELD, tag, False, payload, "work", random.uniform(7200, 14400))
        taken.append(time.perf_counter() - began)
        retries.redis.zrem(WAITING, payload)
    for p in (50, 99):
        yield Row("broker", "ours", f"hold p{p}", n, percentile(taken, p) * 1000, "ms")


def moving(retries: Retries, n: int, options: argparse.Namespace) -> Iterator[Row]:
    """How fast what is due is moved, and for how long Redis does nothing else meanwhile.

    Of the *n* that wait, 20,000 at most are due.
    """
    client: Any = retries.redis
    due = min(n, 20_000)
    rates, longest, calls = [], [], []
    cpu = 0.0
    client.config_set("slowlog-max-len", 2000)
    for _ in range(options.rounds):
        # As many leave as come, so that *n* wait when the first is moved.
        client.zremrangebyrank(WAITING, 0, due - 1)
        retries.fill(due, -10, -0.001)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()
        cpu -= cpu_seconds(client)
        began = time.perf_counter()
        moved = 0
        while number := retries.waiting.move_due("bench").moved:
            moved += number
        took = time.perf_counter() - began
        cpu += cpu_seconds(client)
        client.config_set("slowlog-log-slower-than", -1)
        assert moved == due, f"{moved} of {due} were moved"
        rates.append(moved / took)
        times = [
            entry["duration"] / 1000
            for entry in client.slowlog_get(2000)
            if entry["command"].startswith(b"EVALSHA")
        ]
        calls += times
        longest.append(max(times))
        client.unlink("work")
        retries.fill(n - int(client.zcard(WAITING)), 7200, 14400)
    at = n == 100_000
    rate = statistics.median(rates)
    yield Row("broker", "ours", "moved", n, rate, "/s", least=40_000 if at else None)
    yield Row("broker", "ours", "move call p50", n, percentile(calls, 50), "ms")
    yield Row("broker", "ours", "move call p99", n, percentile(calls, 99), "ms")
    # What a busy machine does not change: the calls that find nothing any more are few.
    yield Row("broker", "ours", "move call, CPU", n, cpu / len(calls) * 1000, "ms")
    # The longest of each round: a machine that stops the server for a moment shows in one.
    value = statistics.median(longest)
    yield Row("broker", "ours", "longest move call", n, value, "ms", 5 if at else None)
    say(f"broker {n:,}: moved " + ", ".join(f"{rate:,.0f}" for rate in rates) + "/s")
    say(f"broker {n:,}: longest call " + ", ".join(f"{ms:.2f}" for ms in longest) + " ms")


def memory(side: Side) -> int:
    """What the server has taken, but for its clients' buffers."""
    info: Any = side.redis.info("memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0))


def cpu_seconds(client: Any) -> float:
    """What the server has taken of the processor."""
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
