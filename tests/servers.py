"""A private RabbitMQ node, and what tests need to wait for things that happen elsewhere.

(The Redis of the tests is the package's own ``EmbeddedServer``.)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from celery_resilience.testing.server import leashed

T = TypeVar("T")


class ServerMissing(Exception):
    """The machine does not have what this server needs."""


def eventually(
    predicate: Callable[[], T],
    timeout: float = 20,
    every: float = 0.05,
    message: str = "",
) -> T:
    """The first truthy value of *predicate*, or an AssertionError after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            what = message or getattr(predicate, "__name__", "it")
            raise AssertionError(f"{what}: not within {timeout:g} s, the last value was {value!r}")
        time.sleep(every)


class RabbitServer:
    """A RabbitMQ node of our own: its ports, its data, its cookie and its epmd are private.

    ``kill`` and ``start`` are for fault tests: what it has confirmed survives. *home* is the root
    of an unpacked one to run instead of the one that is installed. One that is started *beside*
    another joins its cluster, and finds it by its epmd.
    """

    def __init__(self, home: Path | None = None, beside: RabbitServer | None = None) -> None:
        self._folders = [] if home is None else [str(path) for path in _inside(home)]
        self._script, self._epmd, self._erl_call = (
            _find(program, self._folders) for program in ("rabbitmq-server", "epmd", "erl_call")
        )
        self.directory = Path(tempfile.mkdtemp(prefix="rabbit-"))
        self.port, self._dist_port, self._epmd_port = _free_ports(3)
        self.node = f"cr{secrets.token_hex(4)}@localhost"
        self._cookie = secrets.token_hex(16)
        self._beside = beside
        if beside is not None:
            self._cookie, self._epmd_port = beside._cookie, beside._epmd_port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._write_files()

    def url(self, vhost: str = "/") -> str:
        """What Celery takes as a broker."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{'/' if vhost == '/' else vhost}"

    def start(self, timeout: float = 60) -> None:
        """Start the node, on the data of the last run if there was one, and wait for a login.

        It does nothing when the node is up. As every leashed process it ends with the thread that
        started it.
        """
        if self._runs("server") and (self._runs("epmd") or self._beside is not None):
            return
        self._end("server")
        if self._beside is None and not self._runs("epmd"):
            self._run("epmd", [self._epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)])
        eventually(lambda: _accepts(self._epmd_port), 10, message="epmd listens")
        # With RABBITMQ_ALLOW_INPUT the script becomes the node instead of waiting for it.
        server = self._run("server", [self._script, "-noinput"])
        deadline = time.monotonic() + timeout
        while not self._accepts_a_login():
            if server.poll() is not None or time.monotonic() >= deadline:
                log = self.log()
                self._end("server")
                raise AssertionError(f"RabbitMQ did not start; the end of its log:\n{log[-3000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End the node as ``kill -9`` does; the data stay for the next *start*.

        The daemon that nodes find each other by goes on, for the others need it too.
        What it knows of its queues is written first: a quorum queue that is younger than half a
        second when its only node is killed never elects a leader again (seen on 3.10.8).
        """
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.evaluate("[dets:sync(Table) || Table <- dets:all()].")
        self._end("server")

    def stop(self) -> None:
        """End the node and remove its data."""
        self._end("server", "epmd")
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What the node has logged so far."""
        logs = sorted(self.directory.glob("log/*.log"))
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def evaluate(self, erlang: str) -> str:
        """Run *erlang*, some expressions that end with a dot, in the node; the last one's value.

        A few milliseconds, where rabbitmqctl takes seconds. Binaries come back as ``#Bin<size>``.
        """
        command = [self._erl_call, "-n", self.node, "-c", self._cookie, "-e"]
        for left in reversed(range(5)):
            done = subprocess.run(
                command,
                input=f"{erlang}\n".encode(),
                env=self._environment(),
                capture_output=True,
                timeout=10,
                check=False,
            )
            answer = done.stdout.decode()
            if answer.startswith("{ok, "):
                return answer.removeprefix("{ok, ").rstrip("\n}")
            trouble = answer or done.stderr.decode()
            if "failed to connect" not in trouble or not left:
                break
            time.sleep(1.0)  # nothing has run; a loaded node gives up a handshake
        raise AssertionError(f"{erlang} answered {trouble}")

    def messages(self, vhost: str, queue: str) -> int:
        """How many messages *queue* has, those that nobody has acknowledged yet among them."""
        name = f'rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)'
        found = self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup({name}),"
            " [{messages, N}] = rabbit_amqqueue:info(Q, [messages]), N."
        )
        return int(found)

    def add_vhost(self) -> str:
        """The name of a new, empty virtual host.

        In RabbitMQ 3.10 what moves messages at-least-once may have ended with a queue that a test
        has deleted: for all virtual hosts, until the node starts again. It is started again here.
        """
        name = f"t{secrets.token_hex(4)}"
        self.evaluate("supervisor:restart_child(rabbit_sup, rabbit_fifo_dlx_sup).")
        self.evaluate(
            f'rabbit_vhost:add(<<"{name}">>, <<"tests">>),'
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>,'
            ' <<".*">>, <<".*">>, <<".*">>, <<"tests">>).'
        )
        return name

    def close_connections(self, vhost: str) -> None:
        """Close every connection to the virtual host, as an operator may, or an upgrade does."""
        self.evaluate(
            '[catch rabbit_networking:close_connection(Pid, "tests") || [{pid, Pid}, {vhost, Name}]'
            f' <- rabbit_networking:connection_info_all([pid, vhost]), Name =:= <<"{vhost}">>].'
        )

    def delete_vhost(self, name: str) -> None:
        """Delete the virtual host and all that is in it; its connections are closed.

        First: of one whose queues are still being made, RabbitMQ 3.10 may start the worker that
        moves what has expired (rabbit_fifo_dlx) when its queue has gone already. It ends twice, and
        with it the supervisor of all of them: from then on, until the node starts again, it can
        make no queue for waiting retries, in whichever virtual host, and says INTERNAL_ERROR.
        """
        self.close_connections(name)
        self.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"tests">>).')

    def _accepts_a_login(self) -> bool:
        import amqp

        try:
            with amqp.Connection(f"127.0.0.1:{self.port}", "guest", "guest", connect_timeout=5):
                return True
        except (OSError, amqp.AMQPError):
            return False

    def _run(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / "log" / f"{name}.log").open("ab") as output:
            process = self._processes[name] = subprocess.Popen(
                leashed(command),
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return process

    def _runs(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def _end(self, *names: str) -> None:
        for name in names:
            process = self._processes.pop(name, None)
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _environment(self) -> dict[str, str]:
        home = self.directory
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "ERLANG_"))
        }
        return {
            **kept,
            "PATH": os.pathsep.join([*self._folders, *_folders()]),
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_BASE": str(home),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(home / "none" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "none.config"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "data"),
        }

    def _peers(self) -> str:
        if self._beside is None:
            return ""
        return "".join(
            f"cluster_formation.classic_config.nodes.{n} = {node}\n"
            for n, node in enumerate((self._beside.node, self.node), 1)
        )

    def _write_files(self) -> None:
        (self.directory / "data").mkdir()
        (self.directory / "log").mkdir()
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq-env.conf").write_text("")
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "disk_free_limit.absolute = 10MB\n"
            + self._peers()
            + "cluster_partition_handling = ignore\n"
            "log.file.level = warning\n"
        )


def _find(program: str, first: list[str]) -> str:
    # Debian's /usr/sbin/rabbitmq-server becomes the user rabbitmq; the script behind it does not.
    for folder in (*first, "/usr/lib/rabbitmq/bin", *_folders()):
        path = shutil.which(program, path=folder)
        if path is not None:
            return path
    raise ServerMissing(f"{program} is not installed (Debian: apt install rabbitmq-server)")


def _inside(home: Path) -> Iterator[Path]:
    """Where programs may lie in *home*: a package's root, or a folder of RabbitMQ alone."""
    yield from (home / "usr/lib/rabbitmq/bin", home / "sbin", home / "usr/lib/erlang/bin")
    yield from home.glob("usr/lib/erlang/erts-*/bin")


def _folders() -> Iterator[str]:
    yield from os.environ.get("PATH", os.defpath).split(os.pathsep)
    yield from ("/usr/sbin", "/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin")
    yield from (str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin"))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
