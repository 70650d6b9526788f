"""``python -m tests.faults.fleet``: workers of an older commit and of this one on one Redis.

A queue that is full, two workers of each; halfway one of each is killed or ended, and one of each
comes; then all of the new ones go, as in a rollback. Every task has to end, and while there is work
for all each kind has to get at least a quarter of it. Played by hand, from a git checkout: it takes
a minute or two with each pool.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import redis
from celery import Celery

from celery_resilience.testing.server import EmbeddedServer
from tests.faults.row import EVERYWHERE
from tests.servers import eventually
from tests.worker import ROOT, Broker, Worker

#: The commit of 0.1.0, whose workers take through kombu's transport.
OLD = "2374c24"
_APP = "tests.faults.app"
#: At least so much of the work, while there is some for all.
_SHARE = 0.25


def unpacked(commit: str, folder: Path) -> Path:
    """The tree of *commit*."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


class Play:
    """One queue, and the workers of both kinds on it."""

    def __init__(self, url: str, trees: dict[str, Path], pool: str, folder: Path) -> None:
        self.broker = Broker("redis", f"{url}/0", f"{url}/1", "classic", None)
        self.trees, self.pool, self.folder = trees, pool, folder
        self.app = Celery("client", broker=self.broker.broker_url, set_as_current=False)
        self.sent: dict[str, int] = {}
        self.workers: list[Worker] = []
        self._stack = contextlib.ExitStack()

    def send(self, number: int, queue: str = "work") -> None:
        """*number* tasks, one in ten of them with retries."""
        for n in range(len(self.sent), len(self.sent) + number):
            name = f"t{n}"
            self.sent[name] = 2 if n % 10 == 0 else 1
            task, arguments = ("flaky", (name, 1, 0.1)) if n % 10 == 0 else ("good", (name, 0.1))
            self.app.send_task(f"{_APP}.{task}", arguments, queue=queue, ignore_result=True)

    def send_at_once(self, number: int) -> None:
        """So that there is work for all from the first moment."""
        self.send(number, "prepared")
        with redis.Redis.from_url(self.broker.broker_url) as db:
            db.rename("prepared", "work")

    def worker(self, kind: str) -> Worker:
        record = self.folder / f"record-{kind}"
        worker = Worker(
            _APP, self.broker, pool=self.pool, env={"RECORD": str(record)}, cwd=self.trees[kind],
            log=self.folder / f"{kind}-{len(self.workers)}.log",
        )  # fmt: skip
        self.workers.append(self._stack.enter_context(worker))
        return worker

    def lines(self, kind: str, word: str) -> list[str]:
        path = self.folder / f"record-{kind}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(f"{word} ")]

    def ended(self) -> Counter[str]:
        return Counter(self.lines("old", "end") + self.lines("new", "end"))

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the ends of the workers' logs
            self._stack.close()
        self.app.close()


def play(url: str, trees: dict[str, Path], pool: str, folder: Path, number: int) -> list[str]:
    """What was wrong."""
    it = Play(url, trees, pool, folder)
    try:
        first = {kind: [it.worker(kind) for _ in range(2)] for kind in ("old", "new")}
        it.send_at_once(number)
        eventually(lambda: len(it.ended()) >= number // 2, 300, message="half of them end")
        shares = {kind: len(it.lines(kind, "end")) for kind in ("old", "new")}
        first["new"][0].kill()
        first["old"][0].terminate(60)
        it.worker("new")
        rolled_back = it.worker("old")
        it.send(number // 4)
        eventually(lambda: len(it.ended()) >= number, 300, message="nearly all end")
        for worker in (first["new"][1], it.workers[-2]):  # the rollback
            worker.terminate(60)
        it.send(number // 4)
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(it.ended()) == len(it.sent), 120)
        assert rolled_back.pid
        ended = it.ended()
    finally:
        it.close()
    lost = [name for name in it.sent if not ended[name]]
    doubled = sum(times - 1 for times in ended.values())
    print(
        f"{pool:8} {len(it.sent)} sent, {len(lost)} lost, {doubled} ended twice; of the first "
        f"{sum(shares.values())} {shares['old']} by old workers, {shares['new']} by new ones",
        flush=True,
    )
    wrong = [f"{len(lost)} are lost: {lost[:5]}"] if lost else []
    few = [kind for kind, done in shares.items() if done < _SHARE * sum(shares.values())]
    return wrong + [f"{kind} workers got less than a quarter" for kind in few]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fleet", description=__doc__)
    parser.add_argument("--old", default=OLD, help="the commit of the old workers")
    parser.add_argument("--pool", action="append", default=[], choices=[*EVERYWHERE])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--logs", type=Path, help="keep records and logs in this directory")
    options = parser.parse_args(arguments)
    broken = 0
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        trees = {"old": unpacked(options.old, scratch / "old"), "new": ROOT}
        for pool in options.pool or EVERYWHERE:
            folder = (options.logs or scratch) / f"{pool}-{os.getpid()}-{time.time():.0f}"
            folder.mkdir(parents=True)
            with EmbeddedServer(port=0) as server:
                url = server.broker_url.removesuffix("/0")
                wrong = play(url, trees, pool, folder, options.tasks)
            for what in wrong:
                print(f"    {what}")
            broken += bool(wrong)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
