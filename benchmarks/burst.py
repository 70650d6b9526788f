"""How a burst of tasks spreads over idle workers, and what that costs when all are busy.

    python benchmarks/burst.py spread [--pool prefork] [--rounds 5] [--seconds 2] [--before TREE]
    python benchmarks/burst.py busy --before TREE [--rounds 15] [--tasks 6000]

Both start a Redis of their own, without a file, and real workers on our own transport.

``spread``: four idle workers of two slots each (solo has one), and a burst of as many equal tasks
as there are slots, and of twice as many: sent one by one, or visible at once (one script moves
them into the list, as it does due retries, a replay, or what a dead worker held). Printed are how
many tasks each worker ran, in the median round, and the time until the last has ended, in task
times (median).

``busy``: a worker with a full queue of tasks that do nothing, on this checkout and on an older one
(``--before``), in turns of half a second (``--turn``; with one that is longer than a run, one after
the other). Printed are the tasks per second and, for each task, the scripts that Redis ran and the
processor time of the worker and of Redis, each as the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

from celery import Celery  # noqa: E402

from celery_resilience.testing.server import EmbeddedServer  # noqa: E402

POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")
WORKERS, SLOTS = 4, 2
HOWS = ("one by one", "at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["spread", "busy"])
    parser.add_argument("--pool", action="append", choices=POOLS)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a task of a burst is")
    parser.add_argument("--multiplier", type=int, action="append", help="prefetch (1 and 4)")
    parser.add_argument("--early", action="store_true", help="acknowledge before the body runs")
    parser.add_argument("--tasks", type=int, default=6000, help="in each run of busy")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds a turn of busy")
    parser.add_argument("--before", type=Path, help="an older checkout of this project")
    options = parser.parse_args()
    with EmbeddedServer(options=["--save", "", "--appendonly", "no"]) as server:
        (spread if options.what == "spread" else busy)(options, server)


class Runs:
    """Workers of one checkout on one database, and what their tasks have written."""

    def __init__(self, server: EmbeddedServer, tree: Path, database: int, **env: str) -> None:
        import redis

        handle, self.path = tempfile.mkstemp(prefix="burst-")
        os.close(handle)
        url = f"resilient-{server.broker_url}?virtual_host={database}"
        self.db = redis.Redis.from_url(f"{server.url}?db={database}")
        self.db.flushdb()
        self._environment = {
            **os.environ, "BROKER_URL": url, "RUNS": self.path, "C_FORCE_ROOT": "1",
            "PYTHONPATH": os.pathsep.join([str(tree), str(HERE)]), **env,
        }  # fmt: skip
        self._sender = Celery("sender", broker=url.removeprefix("resilient-"))

    def send(self, count: int, name: str, *args: Any, queue: str = "burst") -> None:
        with self._sender.producer_pool.acquire() as producer:
            for _ in range(count):
                self._sender.send_task(name, args, queue=queue, producer=producer)

    @contextlib.contextmanager
    def workers(self, count: int, pool: str, slots: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        command = [sys.executable, "-m", "celery", "-A", "burst_app", "worker", "-P", pool]
        command += ["-c", str(slots), "-l", "ERROR", "--without-gossip", "--without-mingle"]
        made = [
            subprocess.Popen(
                [*command, "-n", f"w{n}@burst"], env=self._environment, start_new_session=True,
                cwd=HERE,  # Python looks there first: a checkout must not come from where we are
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for n in range(count)
        ]  # fmt: skip
        try:
            yield made
        finally:
            for worker in made:
                worker.send_signal(signal.SIGTERM)
            for worker in made:
                try:
                    worker.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.wait()
            os.unlink(self.path)
            self._sender.close()

    def scripts(self) -> int:
        stats: Any = self.db.info("commandstats")
        return sum(row["calls"] for name, row in stats.items() if name.startswith("cmdstat_eval"))

    def servers_cpu(self) -> float:
        """The processor time of Redis, in seconds."""
        info: Any = self.db.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])


def until(done: Any, timeout: float = 120.0, every: float = 0.002) -> None:
    end = time.perf_counter() + timeout
    while not done():
        if time.perf_counter() > end:
            raise SystemExit("it takes too long")
        time.sleep(every)


def spread(options: argparse.Namespace, server: EmbeddedServer) -> None:
    rounds = options.rounds or 5
    print(f"{'pool':8} {'prefetch':>8} {'tasks':>5} {'sent':10}  {'each':18} {'median':>6} {'all'}")
    tree = options.before.resolve() if options.before else HERE.parent
    for pool in options.pool or POOLS:
        slots = 1 if pool == "solo" else SLOTS
        for multiplier in options.multiplier or (4, 1):
            env = {"MULTIPLIER": str(multiplier), **({"EARLY": "1"} if options.early else {})}
            runs = Runs(server, tree, 1, **env)
            with runs.workers(WORKERS, pool, slots):
                alive = lambda: runs.db.zcard("celery_resilience:workers") == WORKERS  # noqa: B023, E731
                until(alive)
                burst(runs, 2 * WORKERS * slots, 0.1, HOWS[0])  # everybody has run something
                time.sleep(2)
                for share in (1, 2):
                    for how in HOWS:
                        seen = [
                            burst(runs, WORKERS * slots * share, options.seconds, how)
                            for _ in range(rounds)
                        ]
                        row(pool, multiplier, WORKERS * slots * share, how, seen)


def burst(runs: Runs, tasks: int, seconds: float, how: str) -> tuple[float, list[int]]:
    """How long it took, in task times, and how many each worker has run."""
    time.sleep(0.5)
    before = Path(runs.path).read_text().count("\n")
    if how == "at once":
        runs.send(tasks, "burst.takes", seconds, queue="hidden")
        began = time.time()
        runs.db.eval(
            "while redis.call('EXISTS', KEYS[1]) == 1 do"
            " redis.call('LPUSH', KEYS[2], redis.call('RPOP', KEYS[1])) end",
            2, "hidden", "burst",
        )  # fmt: skip
    else:
        began = time.time()
        runs.send(tasks, "burst.takes", seconds)
    until(lambda: Path(runs.path).read_text().count("\n") == before + tasks)
    lines = [line.split() for line in Path(runs.path).read_text().splitlines()[before:]]
    each = Counter(line[0] for line in lines)
    shares = sorted((each[f"w{n}@burst"] for n in range(WORKERS)), reverse=True)
    return (max(float(line[2]) for line in lines) - began) / seconds, shares


def row(
    pool: str, multiplier: int, tasks: int, how: str, seen: Sequence[tuple[float, list[int]]]
) -> None:
    middle = sorted(seen)[len(seen) // 2]
    each = "/".join(map(str, middle[1]))
    times = " ".join(f"{time_:.2f}" for time_, _ in seen)
    print(
        f"{pool:8} {multiplier:8} {tasks:5} {how:10}  {each:18} {middle[0]:6.2f} {times}",
        flush=True,
    )


def busy(options: argparse.Namespace, server: EmbeddedServer) -> None:
    if options.before is None:
        raise SystemExit("busy compares with an older checkout: --before TREE")
    names = ("tasks/s", "scripts/task", "CPU ms/task", "Redis ms/task")
    with EmbeddedServer(options=["--save", "", "--appendonly", "no"]) as other:
        sides = {"before": (options.before.resolve(), other), "now": (HERE.parent, server)}
        for pool in options.pool or ("prefork",):
            for multiplier in options.multiplier or (4,):
                pairs: list[dict[str, list[float]]] = []
                for round_ in range(options.rounds or 15):
                    order = ("before", "now") if round_ % 2 == 0 else ("now", "before")
                    pairs.append(
                        race(options, {side: sides[side] for side in order}, pool, multiplier)
                    )
                    ratios = zip(pairs[-1]["now"], pairs[-1]["before"], strict=True)
                    said = " ".join(f"{now / before:.3f}" for now, before in ratios)
                    print(f"{round_ + 1}: {said}", file=sys.stderr, flush=True)
                for n, name in enumerate(names):
                    now, before, ratio = (
                        statistics.median(values)
                        for values in (
                            [pair["now"][n] for pair in pairs],
                            [pair["before"][n] for pair in pairs],
                            [pair["now"][n] / pair["before"][n] for pair in pairs],
                        )
                    )
                    print(
                        f"{pool:8} prefetch {multiplier:2} {name:13} before {before:9.3f} "
                        f"now {now:9.3f} ratio {ratio:.3f}",
                        flush=True,
                    )


def race(
    options: argparse.Namespace,
    sides: dict[str, tuple[Path, EmbeddedServer]],
    pool: str,
    multiplier: int,
) -> dict[str, list[float]]:
    """Of each side tasks per second; scripts, and processor times in ms, for each task.

    They take turns (``--turn``), the other is stopped meanwhile: so the machine's mood is the
    same for both. A side's time is that of its turns.
    """
    with contextlib.ExitStack() as stack:
        runners = {
            side: Runner(options, server, tree, pool, multiplier, stack)
            for side, (tree, server) in sides.items()
        }
        for runner in runners.values():
            runner.fill()
        while not all(runner.is_over() for runner in runners.values()):
            for runner in runners.values():
                runner.take_a_turn()
        return {side: runner.figures() for side, runner in runners.items()}


class Runner:
    """A worker of a checkout that finds a full queue, and works on it only in its turns."""

    def __init__(
        self, options: argparse.Namespace, server: EmbeddedServer, tree: Path, pool: str,
        multiplier: int, stack: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self._tasks, self._turn, self._seconds = options.tasks, options.turn, 0.0
        self._runs = Runs(server, tree, 2, MULTIPLIER=str(multiplier))
        (self._worker,) = stack.enter_context(self._runs.workers(1, pool, SLOTS))
        stack.callback(self._signal, signal.SIGCONT)
        self._cpu, self._scripts, self._servers_cpu = 0.0, 0, 0.0

    def _signal(self, number: int) -> None:
        os.killpg(self._worker.pid, number)

    def _ran(self) -> int:
        return os.stat(self._runs.path).st_size

    def fill(self) -> None:
        self._runs.send(2 * SLOTS, "burst.quick")
        until(lambda: self._ran() == 2 * SLOTS)
        time.sleep(1)
        self._cpu = cpu(self._worker.pid)
        self._signal(signal.SIGSTOP)
        self._runs.send(self._tasks, "burst.quick")
        self._scripts, self._servers_cpu = self._runs.scripts(), self._runs.servers_cpu()

    def is_over(self) -> bool:
        return self._ran() >= 2 * SLOTS + self._tasks

    def take_a_turn(self) -> None:
        if self.is_over():
            return
        began = time.perf_counter()
        self._signal(signal.SIGCONT)
        while not self.is_over() and time.perf_counter() < began + self._turn:
            time.sleep(0.001)
        self._seconds += time.perf_counter() - began
        self._signal(signal.SIGSTOP)
        if self.is_over():
            self._cpu = cpu(self._worker.pid) - self._cpu
            self._scripts = self._runs.scripts() - self._scripts
            self._servers_cpu = self._runs.servers_cpu() - self._servers_cpu

    def figures(self) -> list[float]:
        tasks = self._tasks
        spent = self._cpu * 1000 / tasks, self._servers_cpu * 1000 / tasks
        return [tasks / self._seconds, self._scripts / tasks, *spent]


def cpu(group: int) -> float:
    """The processor time, in seconds, of the processes of a *group*."""
    ticks = 0
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
