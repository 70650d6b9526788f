"""What celery_resilience costs: the same tasks on stock Celery and on ours, in turn.

    python benchmarks/cost.py --broker redis://... [--ours-broker resilient-redis://...]
        [--results redis://...] [--rounds 10]

Each round loads a queue, starts a worker of each side on it (prefork, two processes) and times
from the first run of a body to the last. Printed are the median of the ratios of the pairs and
its 95 % interval (the order statistics of the median), and the tasks per second of each side.
"""

from __future__ import annotations

import argparse
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

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", required=True)
    parser.add_argument("--ours-broker", help="another URL for ours: resilient-redis://...")
    parser.add_argument("--results", help="a result backend; without it results are ignored")
    parser.add_argument("--queue-type", default="classic", choices=["classic", "quorum"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--path", choices=["success", "retry"], action="append")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    options.ours_broker = options.ours_broker or options.broker
    rows = []
    for path in options.path or ["success", "retry"]:
        rates: dict[str, list[float]] = {"stock": [], "ours": []}
        for round_ in range(options.rounds):
            order = ("stock", "ours") if round_ % 2 == 0 else ("ours", "stock")
            for side in order:
                rates[side].append(run(options, side, path))
            print(
                f"{path} {round_ + 1}/{options.rounds}: "
                + ", ".join(f"{side} {rates[side][-1]:.0f}/s" for side in rates),
                file=sys.stderr,
            )
        rows.append(summary(path, rates))
    if options.as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'path':8} {'stock/s':>8} {'ours/s':>8} {'ratio':>6}  95 % interval")
    for row in rows:
        low, high = row["interval"]
        print(
            f"{row['path']:8} {row['stock']:8.0f} {row['ours']:8.0f} {row['ratio']:6.2f}"
            f"  {low:.2f} to {high:.2f}"
        )


def summary(path: str, rates: dict[str, list[float]]) -> dict[str, object]:
    ratios = sorted(o / s for o, s in zip(rates["ours"], rates["stock"], strict=True))
    n = len(ratios)
    reach = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))  # normal approximation to Bin(n, 1/2)
    return {
        "path": path,
        "rounds": n,
        "stock": statistics.median(rates["stock"]),
        "ours": statistics.median(rates["ours"]),
        "ratio": statistics.median(ratios),
        "interval": [ratios[reach], ratios[n - 1 - reach]],
    }


def run(options: argparse.Namespace, side: str, path: str) -> float:
    """Finished tasks per second of a worker of *side* that finds a full queue."""
    with tempfile.NamedTemporaryFile() as done:
        environment = {
            **os.environ,
            "BROKER_URL": options.ours_broker if side == "ours" else options.broker,
            "QUEUE_TYPE": options.queue_type,
            "SIDE": side,
            "DONE": done.name,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "C_FORCE_ROOT": "1",
        }
        environment.pop("BACKEND_URL", None)
        if options.results:
            environment["BACKEND_URL"] = options.results
        load = (
            "import cost_app as c\n"
            f"with c.app.producer_pool.acquire() as p:\n"
            f"    for _ in range({options.tasks}):\n"
            f"        c.app.send_task('{side}.{path}', producer=p)\n"
        )
        subprocess.run([sys.executable, "-c", load], env=environment, check=True)
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "cost_app", "worker", "-P", "prefork", "-c", "2",
             "-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            runs = options.tasks * (2 if path == "retry" else 1)
            watch(done.name, 1, runs)
            begin = time.perf_counter()
            watch(done.name, runs, runs)
            return options.tasks / (time.perf_counter() - begin)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(30)


def watch(path: str, size: int, most: int, timeout: float = 120) -> None:
    until = time.perf_counter() + timeout
    while os.stat(path).st_size < size:
        if time.perf_counter() > until:
            raise SystemExit(f"only {os.stat(path).st_size} of {most} runs are over")
        time.sleep(0.002)


if __name__ == "__main__":
    main()
