"""``python -m tests.faults.cluster``: three RabbitMQ nodes on this machine, and they go.

Played by hand: it takes minutes. ``RABBITMQ=4`` or ``--rabbitmq 4`` plays it on a RabbitMQ 4.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from celery_resilience.brokers.connect import open_broker
from tests import rabbitmq4
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

APP = "tests.apps.rabbits"
_GOOD = 50
#: Bodies at once in a worker.
_AT_ONCE = 4


@contextlib.contextmanager
def three_nodes(version: str) -> Iterator[list[RabbitServer]]:
    """A cluster; its first node ends last, for it has the daemon that they find each other by."""
    home = rabbitmq4.home() if version else None
    with contextlib.ExitStack() as stack:
        nodes: list[RabbitServer] = []
        for _ in range(3):
            node = RabbitServer(home, beside=nodes[0] if nodes else None)
            stack.callback(node.stop)
            node.start(timeout=120)
            nodes.append(node)
        for node in nodes:
            eventually(lambda node=node: running(node) == 3, 60, message="three nodes run")
        yield nodes


def running(node: RabbitServer) -> int:
    """How many nodes *node* knows to run; 0 while it does not answer."""
    try:
        return int(node.evaluate("length([node() | nodes()])."))
    except (AssertionError, subprocess.TimeoutExpired):
        return 0


def end(worker: Worker) -> None:
    """End *worker* without a word of its log."""
    with contextlib.redirect_stdout(io.StringIO()):
        worker.__exit__(None, None, None)


class Play:
    """Workers on the second node, and a producer on the first, which know the others too."""

    def __init__(
        self, nodes: list[RabbitServer], directory: Path, pool: str, workers: int, letters: str
    ) -> None:
        self.nodes = nodes
        first, second, third = (node.url() for node in nodes)
        broker = Broker(
            "rabbitmq-quorum", f"{second};{first};{third}", "cache+memory://", "quorum", None
        )
        self.record, self.gate = directory / "record", directory / "gate"
        conf: dict[str, Any] = {"task_ignore_result": True}
        if letters:
            conf["resilience_dead_letter_queue_arguments"] = {"x-queue-type": letters}
        quorum = {"x-queue-type": "quorum"}
        env = {
            "RECORD": str(self.record),
            "GATE": str(self.gate),
            "CONF": json.dumps(conf),
            "QUEUES": json.dumps({"shop": quorum}),
        }
        self.workers = [
            Worker(
                APP, broker, pool=pool, concurrency=_AT_ONCE, env=env, log=directory / f"{n}.log"
            )
            for n in range(workers)
        ]
        self.app = Celery("client", broker=f"{first};{second};{third}", set_as_current=False)
        self.app.conf.task_queues = [Queue("shop", queue_arguments=quorum)]
        self.app.conf.broker_transport_options = {"confirm_publish": True}

    def send(self, task: str, *names: str) -> None:
        for name in names:
            self.app.send_task(f"{APP}.{task}", (name,), queue="shop", ignore_result=True)

    def starts(self) -> list[str]:
        """Each start of a body, by name."""
        return [line.split()[0] for line in self._lines() if "ended" not in line]

    def ended(self) -> set[str]:
        """The bodies that waited, and ended."""
        return {line.split()[0] for line in self._lines() if "ended" in line}

    def _lines(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    def count(self, queue: str) -> int:
        """How many messages lie in *queue* that nobody holds."""
        with self.app.connection_for_read() as connection:
            broker = open_broker(connection)
            try:
                return broker.count(queue)
            finally:
                broker.close()


def node_goes(play: Play) -> list[str]:
    """The node that the worker is on, and that made the dead-letter queue, is killed for good."""
    play.send("dies", "d0")
    eventually(lambda: play.count("dead_letter") == 1, 60, message="a letter lies there")
    play.nodes[1].kill()
    play.send("dies", "d1")
    names = [f"g{n}" for n in range(_GOOD)]
    play.send("good", *names)
    began = time.monotonic()
    with contextlib.suppress(AssertionError):
        eventually(lambda: set(names) <= set(play.starts()), 60)
    done = len(set(names) & set(play.starts()))
    print(f"  {done} of {_GOOD} good tasks in {time.monotonic() - began:.0f} s after the node went")
    letters = 0
    with contextlib.suppress(Exception):
        eventually(lambda: play.count("dead_letter") == 2, 30)
        letters = play.count("dead_letter")
    print(f"  {letters} of 2 letters can be seen")
    complaints = [] if done == _GOOD else [f"only {done} of {_GOOD} good tasks"]
    return complaints + ([] if letters == 2 else [f"{letters} letters of 2"])


def rolling(play: Play) -> list[str]:
    """Each node is restarted, one after the other, while two bodies run and others come and go."""
    long = ["long0", "long1"]
    play.send("waits", *long)
    eventually(lambda: set(long) <= set(play.starts()), 60)
    good: list[str] = []
    over = threading.Event()

    def produce() -> None:
        for number in itertools.count():
            if over.wait(0.2):
                return
            name = f"g{number}"
            with contextlib.suppress(Exception):  # not confirmed: it may come, or not
                play.send("good", name)
                good.append(name)

    producer = threading.Thread(target=produce)
    producer.start()
    for node in (*play.nodes[1:], play.nodes[0]):
        node.kill()
        node.start(timeout=120)
        eventually(lambda node=node: running(node) == 3, 120, message="three nodes run again")
    over.set()
    producer.join()
    play.gate.touch()
    sent = {*long, *good}
    with contextlib.suppress(AssertionError):
        eventually(lambda: sent <= set(play.starts()) and set(long) <= play.ended(), 120)
    for worker in play.workers:
        worker.terminate(60)  # what it has in hand is settled, or given back
    started, starts = set(play.starts()), play.starts()
    letters, left = play.count("dead_letter"), play.count("shop")
    doubled = [name for name, times in Counter(starts).items() if times > 1]
    print(f"  {len(sent & started)} of {len(sent)} started, {len(doubled)} more than once:")
    print(f"  {', '.join(doubled) or 'none'}; {letters} letters, {left} left in the queue")
    complaints = [f"never started: {sorted(sent - started)}"] if sent - started else []
    complaints += [] if set(long) <= play.ended() else ["a long body never ended"]
    complaints += [f"{left} are left in the queue"] if left else []
    return complaints + ([f"{letters} letters of innocents"] if letters else [])


PLAYS = {"node-goes": node_goes, "rolling": rolling}


def main(argv: Sequence[str] | None = None) -> int:
    """Play what is asked for; 1 if a promise broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cluster", description=__doc__)
    parser.add_argument("--play", action="append", choices=[*PLAYS])
    parser.add_argument("--rabbitmq", default=os.environ.get("RABBITMQ", ""), choices=["", "4"])
    parser.add_argument("--pool", default="prefork", choices=["prefork", "threads", "gevent"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--letters", default="", help="the dead-letter queue's type: classic")
    parser.add_argument("--logs", type=Path, help="keep the workers' logs in this directory")
    options = parser.parse_args(argv)
    broken = 0
    for name in options.play or PLAYS:
        print(f"{name}: {(PLAYS[name].__doc__ or '').splitlines()[0]}", flush=True)
        with contextlib.ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cluster-")))
            nodes = stack.enter_context(three_nodes(options.rabbitmq))
            directory = options.logs / name if options.logs else scratch
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.iterdir():
                left.unlink()
            play = Play(nodes, directory, options.pool, options.workers, options.letters)
            for worker in play.workers:
                stack.callback(end, worker)
                worker.start()
                worker.wait_ready(60)
            complaints = PLAYS[name](play)
            print(f"  {'; '.join(complaints) if complaints else 'kept'}", flush=True)
            broken += bool(complaints)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
