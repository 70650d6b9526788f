"""What celery_resilience costs: the same tasks on stock Celery and on ours, in turn.

    python benchmarks/cost.py --broker redis://... [--ours-broker resilient-redis://...]
        [--results redis://...] [--rounds 10] [--dramatiq] [--before TREE]

Each round fills a queue for each side and starts a worker of each (two processes). The workers
take turns of a second, the others are stopped meanwhile (SIGSTOP): so the machine's own mood, which
changes from minute to minute, is the same for all. A side's time is that of its turns, from the
first run of a body to the last. Printed are, for each side, its tasks per second, the median of
its ratios to stock Celery in the same round, and the 95 % interval of that (the order statistics
of the median); and the same of the tasks per second of processor time, of the worker and its
children, which a busy machine disturbs least. ``--dramatiq`` lets Dramatiq run in the same rounds,
on Redis: for comparison. ``--before`` lets an older checkout of this project run in the same
rounds, and prints the ratios to it as well: what a change costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
#: Seconds.
TURN = 1.0
PATIENCE = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", required=True)
    parser.add_argument("--ours-broker", help="another URL for ours: resilient-redis://...")
    parser.add_argument("--results", help="a result backend; without it results are ignored")
    parser.add_argument("--queue-type", default="classic", choices=["classic", "quorum"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--path", choices=["success", "retry"], action="append")
    parser.add_argument(
        "--dramatiq", action="store_true", help="let Dramatiq run as well, on Redis"
    )
    parser.add_argument("--before", type=Path, help="an older checkout of this project")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    sides = ["stock", "ours", *(["dramatiq"] if options.dramatiq else [])]
    if options.before:
        sides.append("before")
    if options.dramatiq and not options.broker.startswith("redis"):
        parser.error("--dramatiq needs a broker on Redis")
    options.ours_broker = options.ours_broker or options.broker
    rows = []
    for path in options.path or ["success", "retry"]:
        rates: dict[str, list[Rate]] = {side: [] for side in sides}
        for round_ in range(options.rounds):
            first = round_ % len(sides)
            for side, rate in race(options, sides[first:] + sides[:first], path).items():
                rates[side].append(rate)
            print(
                f"{path} {round_ + 1}/{options.rounds}: "
                + ", ".join(
                    f"{side} {rates[side][-1].wall:.0f}/s {rates[side][-1].cpu:.0f}/cpu s"
                    for side in rates
                ),
                file=sys.stderr,
            )
        rows += [summary(path, side, rates) for side in sides]
        if options.before:
            rows.append(summary(path, "ours", rates, to="before"))
    if options.as_json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'path':8} {'side':7} {'to':7} {'tasks/s':>7} {'ratio':>5}  {'95 %':12}"
        f" {'/cpu s':>6} {'ratio':>5}  95 %"
    )
    for row in rows:
        print(f"{row['path']:8} {row['side']:7} {row['to']:7}", end="")
        for clock in ("wall", "cpu"):
            rate, ratio, (low, high) = row[clock]
            print(f" {rate:7.0f} {ratio:5.2f}  {low:.2f} to {high:.2f}", end="")
        print()


class Rate(NamedTuple):
    """Tasks per second, by the wall's clock and by the processor's."""

    wall: float
    cpu: float


def summary(
    path: str, side: str, rates: dict[str, list[Rate]], to: str = "stock"
) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "side": side, "to": to, "rounds": len(rates[side])}
    for clock in Rate._fields:
        its, others = ([getattr(rate, clock) for rate in rates[each]] for each in (side, to))
        ratios = sorted(one / other for one, other in zip(its, others, strict=True))
        n = len(ratios)
        # Normal approximation to Bin(n, 1/2).
        reach = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
        interval = (ratios[reach], ratios[n - 1 - reach])
        row[clock] = (statistics.median(its), statistics.median(ratios), interval)
    return row


CELERY = [
    *("-m", "celery", "-A", "cost_app", "worker", "-P", "prefork", "-c", "2", "-l", "ERROR"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
]
#: The sides that celery_resilience works on.
OURS = {"ours", "before"}
DRAMATIQ = ["-m", "dramatiq", "cost_dramatiq", "-p", "2", "-t", "1"]


class Runner:
    """A worker of a side that finds a full queue, and works on it only in its turns."""

    def __init__(self, options: argparse.Namespace, side: str, path: str) -> None:
        self.runs = options.tasks * (2 if path == "retry" else 1)
        self.seconds = 0.0
        self._side = side
        tree = options.before.resolve() if side == "before" else HERE.parent
        handle, self._done = tempfile.mkstemp()
        os.close(handle)
        environment = {
            **os.environ,
            "BROKER_URL": options.ours_broker if side in OURS else options.broker,
            "QUEUE_TYPE": options.queue_type,
            "SIDE": side,
            "DONE": self._done,
            "PYTHONPATH": os.pathsep.join([str(tree), str(HERE)]),
            "C_FORCE_ROOT": "1",
        }
        environment.pop("BACKEND_URL", None)
        if options.results:
            environment["BACKEND_URL"] = options.results
        module, command = "cost_app", [*CELERY, "-n", f"{side}@cost"]
        if side == "dramatiq":
            module, command = "cost_dramatiq", DRAMATIQ
            environment["dramatiq_queue_prefetch"] = "16"  # as worker_prefetch_multiplier
        name = "ours" if side in OURS else side
        load = f"import {module}; {module}.load({name!r}, {path!r}, {options.tasks})"
        # Python looks first where it is started: that must not be one of the checkouts.
        subprocess.run([sys.executable, "-c", load], env=environment, cwd=HERE, check=True)
        self._worker = subprocess.Popen(
            [sys.executable, *command],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd=HERE,
        )  # fmt: skip
        if not self._watch(1, 30):
            self.close()
            raise SystemExit(f"{side}: its worker has not started")
        os.killpg(self._worker.pid, signal.SIGSTOP)
        self._used = self._cpu()

    @property
    def cpu(self) -> float:
        """Seconds of processor time that the worker and its children took in its turns."""
        return self._cpu() - self._used

    def _cpu(self) -> float:
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # After the name in brackets: state, parent, process group, ..., utime, stime.
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._worker.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def is_over(self) -> bool:
        return os.stat(self._done).st_size >= self.runs

    def take_a_turn(self) -> None:
        begin = time.perf_counter()
        os.killpg(self._worker.pid, signal.SIGCONT)
        self._watch(self.runs, TURN)
        self.seconds += time.perf_counter() - begin
        os.killpg(self._worker.pid, signal.SIGSTOP)

    def _watch(self, size: int, timeout: float) -> bool:
        until = time.perf_counter() + timeout
        while os.stat(self._done).st_size < size:
            if time.perf_counter() > until:
                return False
            time.sleep(0.002)
        return True

    def close(self) -> None:
        os.killpg(self._worker.pid, signal.SIGCONT)
        self._worker.send_signal(signal.SIGTERM)
        try:
            self._worker.wait(30)
        except subprocess.TimeoutExpired:  # all is done and timed, and stock's pool may hang, too
            print(f"{self._side}: the worker did not end, and was killed", file=sys.stderr)
            os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()
        os.unlink(self._done)


def race(options: argparse.Namespace, sides: list[str], path: str) -> dict[str, Rate]:
    """Finished tasks per second of each side."""
    with contextlib.ExitStack() as stack:
        runners = {}
        for side in sides:
            runners[side] = Runner(options, side, path)
            stack.callback(runners[side].close)
        until = time.perf_counter() + PATIENCE
        while not all(runner.is_over() for runner in runners.values()):
            if time.perf_counter() > until:
                raise SystemExit(f"{path}: not all runs are over after {PATIENCE} s")
            for runner in runners.values():
                if not runner.is_over():
                    runner.take_a_turn()
        return {
            side: Rate(options.tasks / runner.seconds, options.tasks / runner.cpu)
            for side, runner in runners.items()
        }


if __name__ == "__main__":
    main()
