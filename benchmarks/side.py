"""One server with one worker on it, stock's or ours, and what is asked of them."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import redis
from celery import Celery
from kombu import Queue

from celery_resilience.brokers.redis.scripts import KEYS
from celery_resilience.testing.server import EmbeddedServer, leashed

HERE = Path(__file__).parent
#: What waits, by when it is due: ours. Each list that something waits for has one.
WAITING = f"{KEYS}waiting:work"


class Row(NamedTuple):
    """One figure, and what is required of it."""

    section: str
    side: str
    what: str
    waiting: int
    value: float
    unit: str
    #: It has to be this at most, or at least.
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool | None:
        if self.most is None and self.least is None:
            return None
        high = self.most is None or self.value <= self.most
        return high and (self.least is None or self.value >= self.least)


class Side:
    """A private Redis and a worker on it (prefork, two processes) with a mouth to our ear."""

    def __init__(
        self,
        side: str,
        binary: str | None = None,
        *,
        url: str | None = None,
        queue_type: str = "classic",
    ) -> None:
        self.side = side
        self._queue_type = queue_type
        # Without a file: that is another cost, which waiting in memory or not does not change.
        options = ("--appendonly", "no")
        self._stack = contextlib.ExitStack()
        self.server: EmbeddedServer | None = None
        if url is None:
            self.server = self._stack.enter_context(EmbeddedServer(binary=binary, options=options))
            url = self.server.broker_url
            self.redis = self._stack.enter_context(redis.Redis.from_url(self.server.url))
        self.url = url
        self._worker: subprocess.Popen[bytes] | None = None
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        self._ear_path = os.path.join(folder, "ear")
        self._log = os.path.join(folder, "log")
        self._ear = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._ear.bind(self._ear_path)
        self.app = Celery(f"client-{side}", broker=url, set_as_current=False)
        queue = Queue("work", queue_arguments={"x-queue-type": queue_type})
        self.app.conf.update(task_default_queue="work", task_queues=[queue])
        self._producer: Any = self._stack.enter_context(self.app.producer_pool.acquire())
        self._number = 0

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._stack.close()

    # The worker

    def start(self) -> None:
        """Start the worker, and wait until it answers."""
        environment = {
            **os.environ,
            "BROKER_URL": self.url,
            "QUEUE_TYPE": self._queue_type,
            "SIDE": self.side,
            "TELL": self._ear_path,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "C_FORCE_ROOT": "1",
        }
        command = [sys.executable, "-m", "celery", "-A", "waiting_app", "worker", "-P", "prefork"]
        command += ["-c", "2", "-l", "ERROR", "-n", f"{self.side}-{id(self)}@bench"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with open(self._log, "ab") as log:
            self._worker = subprocess.Popen(
                leashed(command), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.probe()

    def stop(self) -> None:
        """End the worker; what it held is not asked for again."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    def rss(self) -> float:
        """What the worker's main process takes of memory, in MiB."""
        assert self._worker is not None
        pages = int(Path(f"/proc/{self._worker.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    # Its tasks

    def send(self, task: str, *args: Any, **options: Any) -> None:
        self.app.send_task(task, args=args, producer=self._producer, **options)

    def probe(self) -> float:
        """Seconds from sending a task to its body."""
        self._number += 1
        began = time.monotonic()
        self.send("probe", self._number)
        while True:
            kind, number, *at = self.hear()
            if (kind, number) == ("probe", str(self._number)):
                return float(at[0]) - began

    def hear(self, timeout: float = 60) -> list[str]:
        """What a task tells next."""
        self._ear.settimeout(timeout)
        try:
            return self._ear.recv(4096).decode().split()
        except TimeoutError:
            log = Path(self._log).read_text(errors="replace")[-3000:]
            raise SystemExit(f"{self.side}: no task has run for {timeout:g} s\n{log}") from None

    def until(self, reached: Callable[[], bool], timeout: float = 300) -> None:
        """Wait until *reached*; it asks the server twice a second at most."""
        end = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > end:
                log = Path(self._log).read_text(errors="replace")[-3000:]
                raise SystemExit(f"{self.side}: not reached in {timeout:g} s\n{log}")
            time.sleep(0.5)


def latencies(idle: Side, loaded: Side, rounds: int, probes: int) -> Iterator[tuple[Any, Any]]:
    """For each round the latencies of *idle* and of *loaded*, which are probed in turn."""
    for _ in range(rounds):
        times: dict[Side, list[float]] = {idle: [], loaded: []}
        for n in range(probes):
            for side in (idle, loaded) if n % 2 else (loaded, idle):
                times[side].append(side.probe())
                # Not in step with anything that a worker does now and then.
                time.sleep(random.uniform(0, 0.004))
        yield times[idle], times[loaded]


def percentile(values: list[float], p: float) -> float:
    """The smallest of *values* that *p* percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


def say(text: str) -> None:
    """To whom is watching: the table comes at the end."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
