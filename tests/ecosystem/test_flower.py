"""Flower: its API tells of retries and failures as it does for stock Celery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

from celery_resilience.testing.server import leashed
from tests.ecosystem.conftest import need
from tests.servers import _free_ports, eventually
from tests.worker import ROOT

need("flower", required=True)


def test_flower_shows_tasks_that_retry_and_die(scene, start_worker, tmp_path):
    (port,) = _free_ports(1)
    env = {
        **os.environ,
        **scene.env,
        "BROKER_URL": scene.url,
        "BACKEND_URL": scene.url,
        "PYTHONPATH": str(ROOT),
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    command = [sys.executable, "-m", "celery", "-A", "tests.ecosystem.apps.plain", "flower"]
    with (tmp_path / "flower.log").open("wb") as log:
        flower = subprocess.Popen(
            leashed([*command, f"--port={port}", "--address=127.0.0.1"]),
            env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def get(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, TimeoutError):
            return None

    try:
        eventually(lambda: get("/api/tasks") is not None, 30, message="Flower answers")
        worker = start_worker(
            "tests.ecosystem.apps.plain", scene.broker, env=scene.env, arguments=["-E"]
        )
        recovered, dead = scene.send("eco.flaky", 2), scene.send("eco.dead")
        scene.ends(recovered)
        scene.ends(dead, "FAILURE")

        def states() -> dict[str, str]:
            return {uuid: task["state"] for uuid, task in (get("/api/tasks") or {}).items()}

        eventually(lambda: states().get(recovered.id) == "SUCCESS", 20, message="it recovered")
        eventually(lambda: states().get(dead.id) == "FAILURE", 20, message="it died")
        assert get(f"/api/task/info/{recovered.id}")["retries"] == 2
        assert "ValueError" in get(f"/api/task/info/{dead.id}")["exception"]

        def names() -> Any:  # a round that Flower began before the worker came knows none
            return get("/api/workers?refresh=1") or {}

        eventually(lambda: worker.name in names(), 20, message="Flower lists the worker")
    finally:
        flower.terminate()
        flower.wait(20)
    assert [letter.task for letter in scene.letters()] == ["eco.dead"]
