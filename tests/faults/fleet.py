"""``python -m tests.faults.fleet``: workers of 0.1.0 and of today share a queue, and are killed.

Two workers of each version, and a queue that is never empty for a minute; some of its tasks are
retried, some become dead letters. After a third of the time one of the new ones is killed, and
another comes; after two thirds one of the old ones. Then the new ones all end, as in a rollback,
and the old ones run what is left. Every task has to end or to be a letter, and each kind has to get
at least a quarter of the work. Played by hand, from a git checkout: about two minutes a pool.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from celery import Celery
from kombu import Queue

from celery_resilience import DeadLetters
from celery_resilience.testing.server import EmbeddedServer
from tests import rabbitmq4
from tests.faults.row import EVERYWHERE, RABBITS
from tests.older import APP, COMMITS, unpacked
from tests.servers import eventually
from tests.worker import ROOT, Broker, Worker

__all__ = ["BROKERS", "play"]

BROKERS = ("redis", "resilient-redis", *RABBITS)
#: At least so much of the work, while there is some for all.
_SHARE = 0.25
#: Tasks that are sent and not over, while the load lasts: more than all workers take at once.
_BACKLOG = 120
_TASK_SECONDS = 0.1


class Play:
    """One queue, and the workers of both kinds on it."""

    def __init__(
        self, broker: Broker, trees: Mapping[str, Path], pool: str, folder: Path,
        env: Mapping[str, str],
    ) -> None:  # fmt: skip
        self.broker, self.trees, self.pool, self.folder = broker, trees, pool, folder
        self.env = env
        self.app = Celery("sender", broker=broker.broker_url, set_as_current=False)
        kind = {"x-queue-type": broker.queue_type}
        self.app.conf.update(
            task_queues=[Queue("work", queue_arguments=kind)],
            task_default_queue="work",
            task_default_queue_type=broker.queue_type,
            task_ignore_result=True,
        )
        if broker.name.startswith("rabbitmq"):
            self.app.conf.broker_transport_options = {"confirm_publish": True}
        self.sent: list[str] = []
        self.number = 0
        self._stack = contextlib.ExitStack()

    def send(self, number: int) -> None:
        """*number* tasks: one in ten is retried once, one in fifty becomes a letter."""
        for n in range(len(self.sent), len(self.sent) + number):
            name = f"t{n}"
            task = "hopeless" if n % 50 == 7 else "flaky" if n % 10 == 0 else "good"
            arguments = (name,) if task == "hopeless" else (name, _TASK_SECONDS)
            self.app.send_task(f"{APP}.{task}", arguments, task_id=name, queue="work")
            self.sent.append(name)

    def feed(self, seconds: float) -> None:
        """Let there be work for all, *seconds* long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.send(max(0, _BACKLOG + len(self.ended()) - len(self.sent)))
            time.sleep(0.2)

    def worker(self, kind: str) -> Worker:
        self.number += 1
        env = {**self.env, "RECORD": str(self.folder / f"record-{kind}")}
        log = self.folder / f"{kind}-{self.number}.log"
        worker = Worker(
            APP, self.broker, pool=self.pool, env=env, cwd=self.trees[kind], log=log
        )  # fmt: skip
        return self._stack.enter_context(worker)

    def ended_by(self, kind: str) -> list[str]:
        path = self.folder / f"record-{kind}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith("end ")]

    def ended(self) -> Counter[str]:
        return Counter(self.ended_by("old") + self.ended_by("new"))

    def letters(self) -> Counter[str]:
        with DeadLetters(self.app) as letters:
            return Counter(filed.letter.task_id for filed in letters.list())

    def lost(self) -> set[str]:
        return {*self.sent} - {*self.ended()} - {*self.letters()}

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # the ends of the workers' logs
            self._stack.close()
        self.app.close()


def play(
    broker: Broker, trees: Mapping[str, Path], pool: str, folder: Path, *,
    seconds: float, workers: int = 2, share: float = 0.0, env: Mapping[str, str] | None = None,
) -> list[str]:  # fmt: skip
    """What was wrong; each kind of worker has to get at least that *share* at first."""
    it = Play(broker, trees, pool, folder, env or {})
    try:
        alive = {kind: [it.worker(kind) for _ in range(workers)] for kind in ("old", "new")}
        it.feed(seconds / 3)
        shares = {kind: len(it.ended_by(kind)) for kind in alive}
        for kind in ("new", "old"):
            alive[kind].pop(0).kill()
            alive[kind].append(it.worker(kind))
            it.feed(seconds / 3)
        for worker in alive["new"]:  # the rollback
            worker.terminate(60)
        it.send(_BACKLOG)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not it.lost(), 120, every=0.5)
        lost, ended, letters = it.lost(), it.ended(), it.letters()
    finally:
        it.close()
    doubled = sum(times - 1 for times in ended.values()) + sum(
        times - 1 for times in letters.values()
    )
    print(
        f"{broker.name:16} {pool:8} {len(it.sent)} sent, {len(lost)} lost, {doubled} twice, "
        f"{len(letters)} letters; at first {shares['old']} by old workers, "
        f"{shares['new']} by new ones",
        flush=True,
    )
    wrong = [f"{len(lost)} are lost: {sorted(lost)[:5]}"] if lost else []
    wrong += [f"{name} ended, and is a letter" for name in {*ended} & {*letters}]
    few = [kind for kind, done in shares.items() if done < share * sum(shares.values())]
    return wrong + [f"{kind} workers got less than {share:.0%}" for kind in few]


@contextlib.contextmanager
def empty_broker(name: str) -> Iterator[Broker]:
    """An empty broker of that *name*."""
    if name in RABBITS:
        rabbit = rabbitmq4.server(os.environ.get("RABBITMQ", ""))
        with contextlib.ExitStack() as stack:
            stack.callback(rabbit.stop)
            rabbit.start()
            kind = name.removeprefix("rabbitmq-")
            yield Broker(name, rabbit.url(rabbit.add_vhost()), "cache+memory://", kind, None)
    else:
        with EmbeddedServer(port=0) as redis:
            url = redis.broker_url
            own = f"resilient-{url}" if name == "resilient-redis" else url
            yield Broker(name, own, "cache+memory://", "classic", url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Play each pool on each broker; 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fleet", description=__doc__)
    parser.add_argument("--old", default=COMMITS["0.1.0"], help="the commit of the old workers")
    parser.add_argument("--broker", action="append", default=[], choices=BROKERS)
    parser.add_argument("--pool", action="append", default=[], choices=EVERYWHERE)
    parser.add_argument("--seconds", type=float, default=60, help="how long the load lasts")
    parser.add_argument("--logs", type=Path, help="keep records and logs in this directory")
    options = parser.parse_args(arguments)
    broken = 0
    with tempfile.TemporaryDirectory(prefix="fleet-") as scratch:
        trees = {"old": unpacked(options.old, Path(scratch, "old")), "new": ROOT}
        for name in options.broker or BROKERS:
            for pool in options.pool or EVERYWHERE:
                folder = (options.logs or Path(scratch)) / f"{name}-{pool}-{time.time():.0f}"
                folder.mkdir(parents=True)
                with empty_broker(name) as broker:
                    wrong = play(broker, trees, pool, folder, seconds=options.seconds, share=_SHARE)
                for what in wrong:
                    print(f"    {what}")
                broken += bool(wrong)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
