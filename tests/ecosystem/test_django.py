"""django-celery-results keeps what became of a task; django-celery-beat sends one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

from tests.ecosystem.conftest import need
from tests.servers import eventually
from tests.worker import ROOT

need("django_celery_results", "django_celery_beat")

APP = "tests.ecosystem.apps.django_project"
PREPARE = f"""
from {APP} import app
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.create(name="each second", task="eco.fine", args="[1]", interval=every)
"""


def test_results_and_schedule_are_in_the_database_of_django(scene, start_worker, tmp_path):
    database = tmp_path / "django.sqlite3"
    env = {**scene.env, "DATABASE": str(database)}
    told = {**os.environ, **env, "BROKER_URL": scene.url, "BACKEND_URL": scene.url}
    subprocess.run(
        [sys.executable, "-c", PREPARE],
        env={**told, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, check=True, timeout=60,
    )  # fmt: skip
    start_worker(APP, scene.broker, env=env, arguments=["-B", "-s", str(tmp_path / "beat")])
    recovered, dead = scene.send("eco.flaky", 1), scene.send("eco.dead")

    def stored() -> dict[str, tuple[str, str]]:
        with sqlite3.connect(database, timeout=10) as connection:
            rows = connection.execute(
                "select task_id, status, task_name from django_celery_results_taskresult"
            )
            return {row[0]: row[1:] for row in rows}

    wanted = {recovered.id: ("SUCCESS", "eco.flaky"), dead.id: ("FAILURE", "eco.dead")}
    eventually(lambda: wanted.items() <= stored().items(), 30, message="both are stored")
    eventually(lambda: scene.lines().count("fine 1") >= 2, 30, message="beat has sent twice")
    assert [letter.task for letter in scene.letters()] == ["eco.dead"]
