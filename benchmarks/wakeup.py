"""How soon an idle worker starts a task, and what it asks the broker while it is idle.

    python benchmarks/wakeup.py --broker redis://localhost/15 [--tasks 300] [--workers 1]

The same worker (prefork, one process, 4 queues with 4 priorities each) on kombu's Redis transport
and on ours, in turn. A task's delay is from before it is sent to the first line of its body. The
idle commands are those that Redis has counted (INFO commandstats), what scripts call included.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
IDLE = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", required=True, help="redis://, redis+socket:// or rediss://")
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1, help="how many idle ones there are")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"{'transport':10} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}  idle commands/s and queue")
    for round_ in range(options.rounds):
        for prefix in ("", "resilient-") if round_ % 2 == 0 else ("resilient-", ""):
            delays, idle = run(prefix + options.broker, options.tasks, options.workers)
            delays.sort()
            p50, p99 = statistics.median(delays), delays[int(len(delays) * 0.99)]
            name = "ours" if prefix else "stock"
            print(f"{name:10} {p50:8.1f} {p99:8.1f} {delays[-1]:8.1f}  {idle:.2f}", flush=True)


def run(url: str, tasks: int, count: int) -> tuple[list[float], float]:
    """Delays in ms, and commands per second, queue and worker of an idle worker."""
    with tempfile.NamedTemporaryFile() as done:
        os.environ.update(BROKER_URL=url, STARTS=done.name, C_FORCE_ROOT="1")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
        sys.path[:0] = [str(HERE.parent), str(HERE)]
        sys.modules.pop("wakeup_app", None)
        import wakeup_app

        command = [sys.executable, "-m", "celery", "-A", "wakeup_app", "worker", "-P", "prefork"]
        command += ["-c", "1", "-l", "ERROR", "--without-gossip", "--without-mingle"]
        command += ["--without-heartbeat"]
        workers = [
            subprocess.Popen(
                [*command, "-n", f"w{n}@%h"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for n in range(count)
        ]
        try:
            wakeup_app.started.delay(0.0)
            wait_for(done.name, 1)
            time.sleep(2)
            client = wakeup_app.app.connection_for_read().channel()._create_client()
            client.config_resetstat()
            time.sleep(IDLE)
            stats = client.info("commandstats")
            ignored = ("cmdstat_info", "cmdstat_config|resetstat")
            calls = sum(row["calls"] for name, row in stats.items() if name not in ignored)
            rng = random.Random(1)
            with wakeup_app.app.producer_pool.acquire() as producer:
                for number in range(tasks):
                    time.sleep(rng.uniform(0.02, 0.06))
                    wakeup_app.started.apply_async(
                        (time.time(),), producer=producer, queue=rng.choice(wakeup_app.QUEUES),
                        priority=rng.choice([0, 3, 6, 9]),
                    )  # fmt: skip
                    wait_for(done.name, number + 2)
            lines = Path(done.name).read_text().split()
            idle = calls / IDLE / len(wakeup_app.QUEUES) / count
            return [float(line) for line in lines[1:]], idle
        finally:
            wakeup_app.app.close()
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait(30)


def wait_for(path: str, lines: int, timeout: float = 30) -> None:
    until = time.perf_counter() + timeout
    while Path(path).read_bytes().count(b"\n") < lines:
        if time.perf_counter() > until:
            raise SystemExit(f"task {lines} has not started")
        time.sleep(0.002)


if __name__ == "__main__":
    main()
