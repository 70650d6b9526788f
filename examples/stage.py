"""What the examples run on: a broker, Celery's own commands, and how all of it ends.

What is worth copying stands in the examples themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from celery_resilience.errors import BrokerError
from celery_resilience.testing.server import EmbeddedServer, leashed

__all__ = ["Command", "broker", "broker_url", "clock", "say", "wait"]

ROOT = Path(__file__).parent.parent
#: How long anything may take, in seconds.
PATIENCE = 60.0
#: How long a worker may take to end in good order, in seconds.
_GRACE = 8.0

_began = time.monotonic()
#: What the worker logs about failed attempts and dead letters.
_OURS = re.compile(
    r"(?P<task>[\w.]+)\[(?P<id>[0-9a-f]{4})[0-9a-f-]*\]: "
    r"(?P<what>(attempt \d|dead letter|dropped).*)"
)


def broker_url(description: str) -> str | None:
    """The URL given with ``--broker``, else in BROKER_URL; None for a server of our own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--broker",
        metavar="URL",
        default=os.environ.get("BROKER_URL"),
        help="a Redis or RabbitMQ to run on [BROKER_URL]; without it a private one is started",
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    url: str | None = parser.parse_args().broker
    return url


@contextlib.contextmanager
def broker(url: str | None) -> Iterator[dict[str, str]]:
    """BROKER_URL and BACKEND_URL, for the environment of everything that is started.

    Results are kept where the messages are if that is a Redis, else in a server of our own.
    """
    with contextlib.ExitStack() as stack:
        backend = url if url and url.startswith("redis") else None
        if backend is None:
            try:
                backend = stack.enter_context(EmbeddedServer()).broker_url
            except BrokerError as exc:
                raise SystemExit(f"{exc}, or give --broker redis://...") from exc
        # Whatever proxy the environment names: the services are on this machine.
        yield {"BROKER_URL": url or backend, "BACKEND_URL": backend, "NO_PROXY": "127.0.0.1"}


class Command:
    """``celery ...`` as a subprocess; it and all its children end with this context manager.

    What it logs about failed attempts and dead letters is printed, all of it is kept in *lines*.
    """

    def __init__(
        self, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = arguments[2]
        self.lines: list[str] = []
        self._command = [sys.executable, "-m", "celery", *arguments]
        self._cwd = cwd
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._env = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})}

    def __enter__(self) -> Command:
        self._process = subprocess.Popen(
            leashed(self._command, signal.SIGKILL),
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for the example, which then ends the worker and its whole pool.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=1)

    def check(self) -> None:
        """End the example if this command has ended."""
        if self._process.poll() is not None:
            self._reader.join(timeout=1)
            raise SystemExit("\n".join([*self.lines[-30:], f"celery {self.name} has ended"]))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            found = _OURS.search(line)
            if found is not None:
                task = found["task"].rpartition(".")[2]
                say(f"{clock()}  {task}[{found['id']}]: {found['what']}")


def wait(what: str, until: Callable[[], object], *commands: Command) -> None:
    """Wait for *until*; end the example if that takes too long, or if one of *commands* ends."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        for command in commands:
            command.check()
        if time.monotonic() > deadline:
            tails = [line for command in commands for line in command.lines[-30:]]
            raise SystemExit("\n".join([*tails, f"waited {PATIENCE:g} s in vain: {what}"]))
        time.sleep(0.1)


def clock() -> str:
    """The seconds since the start."""
    return f"{time.monotonic() - _began:5.1f} s"


def say(*lines: str) -> None:
    """Print *lines*, at once."""
    print(*lines, sep="\n", flush=True)
