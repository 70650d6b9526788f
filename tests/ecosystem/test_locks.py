"""celery-once and celery-singleton: their lock lasts over the retries, and ends with the task."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import redis

from tests.ecosystem.conftest import need
from tests.servers import eventually
from tests.worker import ROOT

need("redis")

#: Sends the same call twice; prints what the second one brought.
SEND = """
from tests.ecosystem.apps.locks import locked
first = locked.apply_async((FAILURES,), queue="eco")
try:
    print(locked.apply_async((FAILURES,), queue="eco").id == first.id)
except Exception as exc:
    print(type(exc).__name__)
"""


@pytest.mark.parametrize(
    ("package", "second", "keys"),
    [("celery_once", "AlreadyQueued", "qo_*"), ("celery_singleton", "True", "SINGLETONLOCK_*")],
)
def test_task_is_queued_once_until_its_last_attempt(
    scene, start_worker, tmp_path, package, second, keys
):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: make ecosystem")
    env = {**scene.env, "LOCKS": package}
    told = {**os.environ, **env, "BROKER_URL": scene.url, "BACKEND_URL": scene.url}

    def send(failures: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SEND.replace("FAILURES", str(failures))],
            env={**told, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True, timeout=60,
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    assert send(2) == second
    with redis.Redis.from_url(scene.url) as server:
        assert len(list(server.scan_iter(keys))) == 1
        start_worker("tests.ecosystem.apps.locks", scene.broker, env=env)
        eventually(lambda: "locked 2 2" in scene.lines(), message="the third attempt")
        eventually(lambda: not list(server.scan_iter(keys)), message="the lock is gone")
        assert scene.lines() == ["locked 2 0", "locked 2 1", "locked 2 2"]
        assert send(9) == second
        eventually(lambda: [letter.task for letter in scene.letters()] == ["eco.locked"])
        eventually(lambda: not list(server.scan_iter(keys)), message="a letter holds no lock")
