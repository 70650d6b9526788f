"""celery-batches: its batches run as ever, and the other tasks of the app are covered."""

from __future__ import annotations

from tests.ecosystem.conftest import need
from tests.servers import eventually

need("celery_batches")


def test_batches_run_beside_tasks_that_are_covered(scene, start_worker):
    start_worker("tests.ecosystem.apps.batches", scene.broker, env=scene.env)
    results = [scene.send("eco.batched", letter) for letter in "abc"]
    recovered = scene.send("eco.flaky", 2)
    for result in [*results, recovered]:
        scene.ends(result)
    eventually(lambda: "batch a,b,c" in scene.lines())
    scene.ends(scene.send("eco.dead"), "FAILURE")
    eventually(lambda: [letter.task for letter in scene.letters()] == ["eco.dead"])
