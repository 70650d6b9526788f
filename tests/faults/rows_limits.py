"""Rows 5 and 6: time limits, and every way to end that no framework expects."""

from __future__ import annotations

from collections import Counter

from tests.faults.exotic import EXOTIC
from tests.faults.row import EVERYWHERE, row
from tests.faults.scene import Scene, alive


@row(
    "5-hard",
    "hard time limit",
    pools=("prefork", "gevent"),
    ci=(
        "redis/prefork",
        "redis/gevent",
    ),
)
def hard(scene: Scene) -> None:
    scene.worker()
    for _ in range(3):
        scene.send("slow", time_limit=1, ends="letter", reasons="time_limit")
        scene.send("good")
    _told_once(scene)


@row(
    "5-soft",
    "soft time limit",
    ci=("rabbitmq-classic/prefork",),
)
def soft(scene: Scene) -> None:
    scene.worker()
    hooked = [
        scene.send("slow", soft_time_limit=1, ends="letter", reasons="time_limit") for _ in range(3)
    ]
    # Its own options ask for retries, and get them: 4 starts.
    scene.send(
        "slow_again", soft_time_limit=1, ends="letter", starts=4, reasons="time_limit exhausted"
    )
    _told_once(scene)
    told = Counter(number for number, *_ in scene.lines("hook"))
    scene.expect(all(told[number] == 1 for number in hooked), f"on_failure was called {dict(told)}")


def _told_once(scene: Scene) -> None:
    scene.wait(scene.places.are_final, scene.patience)
    told = Counter(number for number, *_ in scene.lines("failure"))
    for number, task in scene.tasks.items():
        if task.ends == ("letter",):
            scene.expect(told[number] == 1, f"task_failure of {number} came {told[number]} times")


@row(
    "6",
    "MemoryError, SystemExit, what cannot be pickled, shown or counted",
    pools=EVERYWHERE,
    patience=240,
    ci=(
        "redis/prefork",
        "redis/solo",
        "rabbitmq-quorum/threads",
    ),
)
def exotic(scene: Scene) -> None:
    worker = scene.worker()
    pid = worker.pid
    # GeneratorExit is how a greenlet is told to end: its worker, not its task, is meant.
    kinds = [name for name in EXOTIC if name != "GeneratorExit"]
    for which in kinds:
        scene.send("exotic", which, ends="letter")
        scene.send("exotic_again", which, ends="letter", starts=4)
    scene.send("exotic", "str", "x" * 10_000_000, ends="letter")
    scene.send("hooks_raise", ends="letter")
    scene.send("hooks_raise_again", ends="letter", starts=4)
    if not scene.stock:
        scene.send("policy_raises", ends="letter", starts=3)
    last = scene.send("flaky", starts=2)
    scene.wait(scene.places.are_final, scene.patience)
    scene.expect(scene.started(last) == 2, "the last task did not run")
    scene.expect(alive(pid) and worker.pid == pid, "the worker has died")
    scene.expect("Unrecoverable" not in worker.log(), "the worker had an unrecoverable error")
