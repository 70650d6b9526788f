"""Section ``worker``: what waiting retries cost the worker, where it holds them and where not."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator

from side import WAITING, Row, Side, latencies, percentile, say

#: What a task is sent: real ones have arguments.
ARGUMENT = "x" * 300
#: Failures that both workers have behind them before anything is measured.
_WARM = 300


def worker(options: argparse.Namespace) -> Iterator[Row]:
    """Real tasks: stock's wait as countdowns in the worker, ours have failed and wait in Redis."""
    steps = sorted({n for n in (1_000, 10_000) if n < options.waiting} | {options.waiting})
    for side in ("ours", "stock"):
        with Side(side, options.redis_server) as idle, Side(side, options.redis_server) as loaded:
            for each in (idle, loaded):
                each.start()
                warm_up(each)
            before = loaded.rss()
            yield Row("worker", side, "rss", 0, before, "MiB")
            for before_it, n in zip([0, *steps], steps, strict=False):
                load(loaded, n, n - before_it)
                after = loaded.rss()
                yield Row("worker", side, "rss", n, after, "MiB")
                most = 5 if side == "ours" and n == options.waiting else None
                yield Row("worker", side, "rss growth", n, after - before, "MiB", most)
                yield from fresh("worker", idle, loaded, n, options)


def fresh(
    section: str, idle: Side, loaded: Side, n: int, options: argparse.Namespace
) -> Iterator[Row]:
    """The latency of a fresh task with *n* waiting, beside a worker with none."""
    side = loaded.side
    rounds = list(latencies(idle, loaded, options.rounds, options.probes))
    required = 1.2 if side == "ours" and n >= 20_000 else None
    for name, times in (("idle", 0), ("fresh", 1)):
        pooled = [seconds for round_ in rounds for seconds in round_[times]]
        for p in (50, 99, 100):
            value = percentile(pooled, p) * 1000
            yield Row(section, side, f"{name} p{p}", n, value, "ms")
    for p in (50, 99):
        ratios = [percentile(busy, p) / percentile(none, p) for none, busy in rounds]
        ratio = statistics.median(ratios)
        yield Row(section, side, f"fresh/idle p{p}", n, ratio, "x", required)
        say(f"{section} {side} {n:,}: p{p} " + ", ".join(f"{r:.2f}" for r in ratios))


def warm_up(side: Side) -> None:
    """Let the worker do what it will do, until nothing is new to it."""
    for _ in range(_WARM):
        side.send("fail", ARGUMENT, 0.2)
    for _ in range(100):
        side.probe()
    side.until(lambda: held(side) == 0 and not side.redis.llen("work"))
    for _ in range(50):
        side.probe()


def load(side: Side, n: int, more: int) -> None:
    """Let there be *n* that wait for an hour or more: *more* than there were."""
    say(f"worker {side.side}: up to {n:,}")
    for _ in range(more):
        if side.side == "ours":
            side.send("fail", ARGUMENT, 5000)
        else:
            # A countdown as a retry of stock's has it; failing first would only take longer.
            side.send("fail", ARGUMENT, 5000, countdown=5000)
    side.until(lambda: held(side) == n and not side.redis.llen("work"))


def held(side: Side) -> int:
    """How many wait: ours in their sorted set, stock's unacknowledged in the worker."""
    if side.side == "ours":
        return int(side.redis.zcard(WAITING))
    return int(side.redis.hlen("unacked"))
