"""What the demo runs on: a broker and a worker, and how they end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kombu.exceptions import OperationalError

import celery_resilience
from celery_resilience.demo.app import DEAD_LETTERS, LEDGER_URL, PREFIX, QUEUE, app
from celery_resilience.errors import BrokerError
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.testing.server import EmbeddedServer, leashed

__all__ = ["Worker", "WorkerEnded", "broker"]

#: How long the worker may take to end in good order, in seconds.
_GRACE = 5.0


@contextlib.contextmanager
def broker(url: str | None) -> Iterator[str]:
    """A broker that answers: the one at *url*, or a server of our own; what it is, in words.

    Raises BrokerError if there is none. What the demo leaves in a server of yours is removed.
    """
    with contextlib.ExitStack() as stack:
        server = None
        words = "your broker"
        if not url:
            server = stack.enter_context(_server())
            url, words = server.broker_url, f"{server.binary.name} on a private socket"
        for name in [name for name in os.environ if name.startswith("CELERY_")]:
            del os.environ[name]  # the user's, for workers of theirs
        os.environ["CELERY_BROKER_URL"] = url
        _refuse_others(url)
        with DeadLetters(app) as letters:
            letters.count()  # raises if it can't be reached, and says where
        if server is None:
            clean()  # a demo that was killed may have left something
            stack.callback(clean)
        yield words


def _server() -> EmbeddedServer:
    try:
        return EmbeddedServer()
    except BrokerError as exc:
        raise BrokerError(f"{exc}, or give --broker URL") from exc


def _refuse_others(url: str) -> None:
    """Raise BrokerError unless *url* is of a broker that dead letters can be replayed on."""
    if (
        url.startswith(("redis", "resilient-", "sentinel"))
        and importlib.util.find_spec("redis") is None
    ):
        raise BrokerError(
            "the redis package is missing: pip install 'celery-resilience[demo]' brings it"
        )
    try:
        with app.connection_for_read() as connection:
            if connection.transport.driver_type in ("redis", "amqp"):
                return
    except ValueError as exc:
        raise BrokerError(f"that is no broker's URL: {exc}") from exc
    except (LookupError, ImportError):
        pass  # no such transport, or none of its package
    scheme = url.partition("://")[0]
    raise BrokerError(f"{scheme}:// can't be replayed on: the demo needs Redis or RabbitMQ")


def clean() -> None:
    """Remove what belongs to the demo from the broker, and nothing else."""
    with app.connection_for_write() as connection:
        lost: Any = (OperationalError, *connection.recoverable_connection_errors)
        try:
            channel: Any = connection.default_channel
            if connection.transport.driver_type == "redis":
                import redis

                client = redis.Redis(connection_pool=channel.pool)
                for key in client.scan_iter(f"{PREFIX}*", count=1000):
                    client.delete(key)
            else:
                for queue in (QUEUE, DEAD_LETTERS):
                    channel.queue_delete(queue)
                channel.exchange_delete(QUEUE)  # Celery makes one of the queue's name
        except lost as exc:
            raise BrokerError(
                f"lost {connection.as_uri()}: {exc}; what begins with {QUEUE} there is left over"
            ) from exc


class WorkerEnded(Exception):
    """The worker has ended, or does not begin; the end of its log says why."""


class Worker:
    """``celery worker`` as a subprocess; it and its pool end with this context manager."""

    def __init__(self, ledger_url: str, processes: int) -> None:
        self._command = [sys.executable, "-m", "celery", "-A", "celery_resilience.demo.app"]
        self._command += ["worker", "--pool", "prefork", "--concurrency", str(processes)]
        self._command += ["--hostname", "demo@%h", "--loglevel", "INFO"]
        self._command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        self._ledger_url = ledger_url

    def __enter__(self) -> Worker:
        self._directory = tempfile.TemporaryDirectory(prefix="celery-demo-")
        self._log = Path(self._directory.name, "worker.log")
        # Its own folder is its working directory, lest it imports what lies in the user's.
        packages = str(Path(celery_resilience.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                leashed(self._command, signal.SIGKILL),
                cwd=self._directory.name,
                env={**os.environ, "PYTHONPATH": path, LEDGER_URL: self._ledger_url},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then ends the worker and its whole pool.
                start_new_session=True,
            )
        return self

    def check(self) -> None:
        """Raise WorkerEnded if it has ended."""
        if self._process.poll() is not None:
            raise WorkerEnded(
                f"the worker ended with {self._process.returncode}; the end of its log:\n"
                f"{self.tail()}"
            )

    def tail(self, lines: int = 30) -> str:
        """The end of the worker's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def __exit__(self, exc_type: object, *rest: object) -> None:
        if exc_type is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._directory.cleanup()
