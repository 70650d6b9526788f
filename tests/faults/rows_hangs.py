"""Rows 16: a server accepts connections, or has them, and never answers."""

from __future__ import annotations

from tests.faults.row import row
from tests.faults.scene import Scene


def _ended(scene: Scene, numbers: list[str]) -> int:
    ended = {rest[0] for rest in scene.lines("end")}
    return len(ended.intersection(numbers))


@row(
    "16-results",
    "the result store hangs: tasks without results go on, retries come due, letters are written",
    brokers=("redis", "rabbitmq-classic"),
    patience=60,
    ci=("rabbitmq-classic/prefork",),
)
def results_hang(scene: Scene) -> None:
    worker = scene.worker(concurrency=4)
    later = [scene.send("later", 2.0, starts=2, by_record=True) for _ in range(2)]
    scene.wait(lambda: list(scene.places.states().values()).count("RETRY") == 2)
    scene.results_door.jam()
    scene.send("poison_without_retries", "kill", ends="letter")
    scene.send("rejects", ends="letter")
    quiet = [scene.send("quiet", 0.05, by_record=True) for _ in range(20)]
    scene.wait(lambda: _ended(scene, quiet) == 20, 40, "20 tasks without results have run")
    scene.wait(lambda: _ended(scene, later) == 2, 40, "retries that came due have run")
    scene.wait(lambda: scene.client.count("dead_letter") == 2, 40, "2 letters are written")
    scene.expect(worker.log().count("no answer for") == 1, "the log says once what hangs")
    scene.results_door.mend()
