"""Without the extra ``[redis]`` every way in says what to install, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import celery
import pytest

from tests.worker import ROOT

SAID = "needs a package that is not installed: pip install 'celery-resilience[redis]'"
APP = """
import os
from celery import Celery
from celery_resilience import install

app = Celery("shop", broker=os.environ["BROKER"], backend=os.environ.get("BACKEND"))
install(app)


@app.task
def charge(): ...
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All that is installed here, but no client of Redis."""
    folder = tmp_path_factory.mktemp("without_redis")
    for path in Path(celery.__file__).parents[1].iterdir():
        if not path.name.startswith("redis") and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    (folder / "shop.py").write_text(APP)
    return folder


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(folder), str(ROOT)))
    known = {**os.environ, "PYTHONPATH": path, "BROKER": "redis://127.0.0.1:1/0", **env}
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=folder, env=known, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "scheme"),
    [("worker", "redis"), ("worker", "resilient-sentinel"), ("dlq ls", "redis"),
     ("resilience doctor", "rediss")],
)  # fmt: skip
def test_command_says_it_in_one_line(folder, command, scheme):
    done = run(folder, "-m", "celery", "-A", "shop", *command.split(), BROKER=f"{scheme}://:1/0")
    said = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode == 1
    assert said[-1] == f"Error: a broker on Redis {SAID}"
    assert "Traceback (most recent call last):" not in said


def test_producer_is_told_at_the_end_of_its_traceback(folder):
    send = "import shop; shop.charge.delay()"
    last = run(folder, "-c", send).stderr.splitlines()[-1]
    assert last.endswith(f"MissingPackage: a broker on Redis {SAID}")
    ready = run(
        folder, "-c", "import shop; shop.app.backend", BROKER="memory://", BACKEND="redis://:1/0"
    )
    assert ready.stderr.splitlines()[-1].endswith(f"a result backend on Redis {SAID}")
