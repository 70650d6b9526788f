"""An example as a user starts it: one command in a subprocess."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from celery_resilience.errors import BrokerError
from celery_resilience.testing.server import find_server
from tests.classify.conftest import library
from tests.conftest import missing
from tests.servers import eventually
from tests.worker import ROOT


@dataclass(frozen=True)
class Ended:
    """An example that has ended by itself."""

    code: int
    output: str
    #: The commands of its processes that are still there.
    left: list[str]


class Example:
    """``python -m name``; *libraries* are what it needs."""

    def __init__(self, name: str, *libraries: str) -> None:
        for needed in ("redis", *libraries):
            library(needed)
        try:
            find_server()
        except BrokerError as exc:
            missing(str(exc))
        self._mark = secrets.token_hex(8)
        environment = {k: v for k, v in os.environ.items() if k not in _OURS}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", name],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": path, _MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> None:
        """Read its lines up to the first with *text*."""
        assert self._process.stdout is not None
        assert any(text in line for line in self._process.stdout), f"it ended without {text!r}"

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def ended(self, timeout: float = 90) -> Ended:
        """Wait for its end; pytest shows what it has printed if the test fails."""
        try:
            output = self._process.communicate(timeout=timeout)[0]
        finally:
            self._process.kill()
        print(output)
        if sys.platform.startswith("linux"):  # a killed child may take a moment to go
            eventually(lambda: not self._left(), 10, message="its processes end")
        return Ended(self._process.returncode, output, self._left())

    def _left(self) -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if marked and command:  # a zombie has no command
                found.append(command)
        return found


_MARK = "EXAMPLE_MARK"
#: What a developer may have set, and an example heeds.
_OURS = {
    "BROKER_URL",
    "BACKEND_URL",
    "CRON_EVERY",
    "DATABASE",
    "DJANGO_SETTINGS_MODULE",
    "SONG_SPEEDUP",
}
