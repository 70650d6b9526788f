"""``python -m tests.faults.cluster``: three RabbitMQ nodes on this machine, and one of them goes.

Played by hand: it takes minutes. ``RABBITMQ=4`` or ``--rabbitmq 4`` plays it on a RabbitMQ 4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

from celery_resilience.brokers import open_broker
from tests import rabbitmq4
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

APP = "tests.apps.rabbits"
_GOOD = 50


@contextlib.contextmanager
def three_nodes(version: str) -> Iterator[list[RabbitServer]]:
    """A cluster; its first node goes last, for it has the daemon that they find each other by."""
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
    """How many nodes *node* knows to run."""
    return int(node.evaluate("length([node() | nodes()])."))


class Play:
    """A worker and a producer on the second node, which know the others too."""

    def __init__(self, nodes: list[RabbitServer], directory: Path, letters: str) -> None:
        self.nodes = nodes
        first, second, third = (node.url() for node in nodes)
        broker = Broker(
            "rabbitmq-quorum", f"{second};{first};{third}", "cache+memory://", "quorum", None
        )
        self.record = directory / "record"
        conf: dict[str, Any] = {"task_ignore_result": True}
        if letters:
            conf["resilience_dead_letter_queue_arguments"] = {"x-queue-type": letters}
        self.worker = Worker(
            APP, broker, log=directory / "worker.log",
            env={
                "RECORD": str(self.record), "SLEEP": "20", "CONF": json.dumps(conf),
                "QUEUES": json.dumps({"shop": {"x-queue-type": "quorum"}}),
            },
        )  # fmt: skip
        self.app = Celery("client", broker=first, set_as_current=False)
        quorum = {"x-queue-type": "quorum"}
        self.app.conf.task_queues = [Queue("shop", queue_arguments=quorum)]
        self.app.conf.broker_transport_options = {"confirm_publish": True}

    def send(self, task: str, *names: str) -> None:
        for name in names:
            self.app.send_task(f"{APP}.{task}", (name,), queue="shop", ignore_result=True)

    def starts(self) -> list[str]:
        """Each start of a body, by name."""
        text = self.record.read_text() if self.record.exists() else ""
        return [line.split()[0] for line in text.splitlines()]

    def letters(self) -> int:
        with self.app.connection_for_read() as connection:
            broker = open_broker(connection)
            try:
                return broker.count("dead_letter")
            finally:
                broker.close()


def node_goes(play: Play) -> list[str]:
    """The node that the worker is on, and that made the dead-letter queue, is killed for good."""
    play.send("dies", "d0")
    eventually(lambda: play.letters() == 1, 60, message="a letter lies there")
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
        eventually(lambda: play.letters() == 2, 30)
        letters = play.letters()
    print(f"  {letters} of 2 letters can be seen")
    complaints = [] if done == _GOOD else [f"only {done} of {_GOOD} good tasks"]
    return complaints + ([] if letters == 2 else [f"{letters} letters of 2"])


def rolling(play: Play) -> list[str]:
    """Each node is restarted, one after the other, while bodies of 20 s run."""
    names = [f"s{n}" for n in range(6)]
    play.send("sleeps", *names)
    eventually(lambda: len(play.starts()) >= 2, 60)
    for node in (play.nodes[1], play.nodes[2], play.nodes[1]):
        node.kill()
        node.start(timeout=120)
        eventually(lambda node=node: running(node) == 3, 120)
    with contextlib.suppress(AssertionError):
        eventually(lambda: set(names) <= set(play.starts()), 180)
    time.sleep(25)  # what has begun ends
    starts, letters = play.starts(), play.letters()
    print(f"  {len(set(starts))} of 6 started, {len(starts)} starts, {letters} letters")
    complaints = [] if set(starts) == set(names) else ["not all have started"]
    return complaints + ([f"{letters} letters of innocents"] if letters else [])


PLAYS = {"node-goes": node_goes, "rolling": rolling}


def main(argv: Sequence[str] | None = None) -> int:
    """Play what is asked for; 1 if a promise broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.cluster", description=__doc__)
    parser.add_argument("--play", action="append", choices=[*PLAYS])
    parser.add_argument("--rabbitmq", default=os.environ.get("RABBITMQ", ""), choices=["", "4"])
    parser.add_argument("--letters", default="", help="the dead-letter queue's type: classic")
    options = parser.parse_args(argv)
    broken = 0
    for name in options.play or PLAYS:
        print(f"{name}: {(PLAYS[name].__doc__ or '').splitlines()[0]}", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="cluster-") as scratch,
            three_nodes(options.rabbitmq) as nodes,
        ):
            play = Play(nodes, Path(scratch), options.letters)
            play.worker.start()
            try:
                play.worker.wait_ready(60)
                complaints = PLAYS[name](play)
            finally:
                with contextlib.suppress(AssertionError):
                    play.worker.send(signal.SIGKILL)
                    play.worker.wait()
                if "-v" in sys.argv:
                    print(play.worker.tail(40))
            print(f"  {'; '.join(complaints) if complaints else 'kept'}", flush=True)
            broken += bool(complaints)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
