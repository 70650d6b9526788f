"""What a killed worker takes along: messages that are in no list, held by nobody, and not done.

    python benchmarks/window.py --broker redis://localhost/15 [--kills 100]

A worker (prefork, two processes, ``acks_late``) works through a full queue and is killed with
SIGKILL, its whole process group, at a random moment; then every number that was sent is looked
for. That on kombu's Redis transport and on ours, in turn. The database is emptied.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FULL = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", required=True, help="redis://, redis+socket:// or rediss://")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for prefix in ("", "resilient-"):
        lost, kills = run(prefix + options.broker, options.kills, random.Random(options.seed))
        name = "ours" if prefix else "stock"
        print(f"{name}: {sum(lost)} messages lost in {kills} kills; {sum(map(bool, lost))} kills "
              "lost something", flush=True)  # fmt: skip


def run(url: str, kills: int, rng: random.Random) -> tuple[list[int], int]:
    """How many messages each kill has lost."""
    with tempfile.NamedTemporaryFile() as done:
        os.environ.update(BROKER_URL=url, DONE=done.name, C_FORCE_ROOT="1")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE)])
        sys.path[:0] = [str(HERE.parent), str(HERE)]
        sys.modules.pop("window_app", None)
        import window_app

        channel: Any = window_app.app.connection_for_read().channel()
        client = channel._create_client()
        client.flushdb()
        command = [sys.executable, "-m", "celery", "-A", "window_app", "worker", "-P", "prefork"]
        command += ["-c", "2", "-l", "ERROR", "--without-gossip", "--without-mingle"]
        command += ["--without-heartbeat"]
        sent, gone, lost = 0, 0, []
        for _ in range(kills):
            with window_app.app.producer_pool.acquire() as producer:
                while client.llen("window") < FULL:
                    window_app.note.apply_async((sent,), producer=producer)
                    sent += 1
            size = os.stat(done.name).st_size
            worker = subprocess.Popen(
                command, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while os.stat(done.name).st_size == size:
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.3))
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            time.sleep(0.1)  # for what its children were writing
            found = {int(line) for line in Path(done.name).read_text().split()}
            found |= in_broker(client)
            lost.append(sent - len(found) - gone)
            gone += lost[-1]
        client.flushdb()
        window_app.app.close()
        return lost, kills


def in_broker(client: Any) -> set[int]:
    """The numbers of the messages that lie in a queue, wait, or are held by somebody."""
    found = {
        number(raw) for name in ("window", "dead_letter") for raw in client.lrange(name, 0, -1)
    }
    found |= {number(raw) for raw in client.zrange("celery_resilience:waiting:window", 0, -1)}
    found |= {number(json.dumps(json.loads(row)[0])) for row in client.hvals("unacked")}
    for key in client.scan_iter("celery_resilience:held:*"):
        found |= {number(row.partition(b"\n")[2]) for row in client.hvals(key)}
    return found


def number(payload: Any) -> int:
    return int(json.loads(base64.b64decode(json.loads(payload)["body"]))[0][0])


if __name__ == "__main__":
    main()
