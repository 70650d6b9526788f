"""Celery's pytest plugin: its worker, in a thread of the test, retries as a worker does."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.ecosystem.conftest import need
from tests.worker import ROOT

need("redis")


def test_users_own_tests_pass_with_the_fixtures_of_celery(scene, tmp_path):
    file = ROOT / "tests" / "ecosystem" / "apps" / "with_plugin.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:valkey", "--rootdir", str(tmp_path),
         "-c", os.devnull, str(file)],
        env={**os.environ, "BROKER_URL": scene.url, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
