"""A private PostgreSQL server: its port and its data are its own, and it ends with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from celery_resilience.testing.server import leashed
from tests.servers import ServerMissing, _free_ports, eventually


class PostgresServer:
    """PostgreSQL on 127.0.0.1, without passwords. Root runs it as the user ``postgres``, for it
    refuses to be root's."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        program = str(found[-1]) if found else shutil.which("postgres")
        if program is None:
            raise ServerMissing("postgres is not installed (Debian: apt install postgresql)")
        self._programs = Path(program).parent
        (self.port,) = _free_ports(1)
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._directory, user.pw_uid, user.pw_gid)

    @property
    def url(self) -> str:
        """What psycopg and SQLAlchemy take."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, on the data of the last run if there was one, and wait for its first answer."""
        data = self._directory / "data"
        if not data.exists():
            self._run(
                [f"{self._programs}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust"]
            )
        command = [
            f"{self._programs}/postgres", "-D", str(data), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._directory}",
        ]  # fmt: skip
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                leashed([*_as_postgres(), *command]), cwd=self._directory,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        ready = [f"{self._programs}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        eventually(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            30,
            message="postgres answers",
        )

    def stop(self) -> None:
        """End it and remove its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # at once, with its sessions
            self._process.wait(30)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, command: Sequence[str]) -> None:
        subprocess.run(
            [*_as_postgres(), *command], cwd=self._directory, check=True, capture_output=True
        )


def _as_postgres() -> list[str]:
    if os.getuid():
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServerMissing("setpriv is not installed (Debian: apt install util-linux)")
    return [setpriv, "--reuid=postgres", "--regid=postgres", "--clear-groups"]
