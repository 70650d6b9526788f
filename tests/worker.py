"""A real Celery worker in a subprocess, for a test to start, watch and kill."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from celery_resilience.testing.server import leashed
from tests.servers import eventually

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Broker:
    """Where a test's messages and results go; nothing else is there at first."""

    name: str  #: redis, resilient-redis, kombu-redis; rabbitmq, rabbitmq4 with -classic or -quorum
    broker_url: str
    backend_url: str
    queue_type: str  #: for ``task_default_queue_type``; "classic" on Redis, which ignores it
    redis_url: str | None  #: for redis-py, to look into the broker; None on RabbitMQ


class Worker:
    """``celery -A app worker`` in a process group of its own; the whole group ends with the test.

    The app is told by its environment where to connect: ``BROKER_URL``, ``BACKEND_URL`` and
    ``QUEUE_TYPE``. Without *log* its output goes to a temporary file. One that is *sociable* talks
    to other workers. *cwd* is the tree that it runs.
    """

    def __init__(
        self,
        app: str,
        broker: Broker,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: str | None = None,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        sociable: bool = False,
        cwd: Path = ROOT,
    ) -> None:
        self._cwd = cwd
        self.name = f"w{secrets.token_hex(3)}@tests"
        self.command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", self.name]
        self.command += ["-P", pool, "-c", str(concurrency), "-l", "INFO"]
        self.command += [] if sociable else ["--without-gossip", "--without-mingle"]
        self.command += [] if queues is None else ["-Q", queues]
        self.command += arguments
        self._environment = {
            **os.environ,
            "BROKER_URL": broker.broker_url,
            "BACKEND_URL": broker.backend_url,
            "QUEUE_TYPE": broker.queue_type,
            **({"CELERY_WORKER_REDIS_TRANSPORT": "kombu"} if broker.name == "kombu-redis" else {}),
            "PYTHONPATH": os.pathsep.join([str(cwd), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "C_FORCE_ROOT": "1",  # pickle is refused to root otherwise
            **(env or {}),
        }
        if log is None:
            handle, path = tempfile.mkstemp(prefix="worker-", suffix=".log")
            os.close(handle)
            log = Path(path)
            self._remove_log = True
        else:
            self._remove_log = False
        self._log = log
        self._start_of_this_run = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The main process; the pool's children are in its process group."""
        return self._running().pid

    def start(self) -> None:
        """Start it, or start it again after its end; the log goes on."""
        self._end_group()
        with self._log.open("ab") as log:
            self._start_of_this_run = log.tell()
            self._process = subprocess.Popen(
                # Should pytest be killed, the worker waits neither for tasks nor for its broker.
                leashed(self.command, signal.SIGKILL),
                cwd=self._cwd,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until this run consumes, fail with the end of the log if it does not."""
        deadline = time.monotonic() + timeout
        while f"{self.name} ready." not in self.log(self._start_of_this_run):
            if self._running().poll() is not None:
                raise AssertionError(f"the worker ended; the end of its log:\n{self.tail()}")
            if time.monotonic() >= deadline:
                raise AssertionError(f"the worker is not ready; the end of its log:\n{self.tail()}")
            time.sleep(0.05)

    def send(self, signalnum: signal.Signals) -> None:
        """Send a signal to the main process alone."""
        self._running().send_signal(signalnum)

    def wait(self, timeout: float = 30) -> int:
        """Wait for the end of the main process, and return its exit code."""
        process = self._running()
        eventually(lambda: process.poll() is not None, timeout, message=f"{self.name} ends")
        return process.wait()

    def terminate(self, timeout: float = 30) -> int:
        """Warm shutdown: it finishes its tasks and ends."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End main process and pool at once, as a power cut does."""
        os.killpg(self._running().pid, signal.SIGKILL)
        self._running().wait()

    def kill_main(self) -> None:
        """End the main process alone, as the OOM killer does; the pool's children notice later."""
        self._running().kill()
        self._running().wait()

    def log(self, since: int = 0) -> str:
        """All that it has written, of every run."""
        with self._log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def tail(self, lines: int = 60) -> str:
        """The end of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def __enter__(self) -> Worker:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self._end_group()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_group()
        # pytest shows what was printed when the test fails, and only then.
        print(f"\n----- the end of the log of {self.name} -----\n{self.tail()}")
        if self._remove_log:
            self._log.unlink()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "this worker was never started"
        return self._process

    def _end_group(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
