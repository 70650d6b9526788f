"""Row 9: a worker is told to end in the middle of retries."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from tests.faults.row import EVERYWHERE, row
from tests.faults.scene import Scene


def _in_the_middle(
    scene: Scene, signals: Sequence[signal.Signals], conf: dict[str, object] | None = None
) -> None:
    for _ in range(30):
        scene.send("flaky", 2, 0.2, starts=3)
    worker = scene.worker(conf=conf)
    scene.wait(lambda: sum(scene.starts().values()) >= 6)
    for number, each in enumerate(signals):
        if number:
            scene.pause(0.5)
        worker.send(each)
    worker.wait(30)
    _true(scene)
    worker.start()


def _true(scene: Scene) -> None:
    """While no worker runs: what is not over lies in the broker, and its state does not deny it."""
    if not scene.on_redis:
        scene.wait(lambda: _lie_or_done(scene), 20, message="the broker has taken all of it back")
    scene.expect(_lie_or_done(scene), "while no worker ran, not every task was in one place")
    states = scene.places.states()
    wrong = {n: s for n, s in states.items() if s == "FAILURE"}
    scene.expect(not wrong, f"states that are not true: {wrong}")


def _lie_or_done(scene: Scene) -> bool:
    states, lying = scene.places.states(), scene.places.lying()
    return all(
        len(lying.get(number, ())) == (states.get(number) != "SUCCESS") for number in scene.tasks
    )


@row(
    "9-warm",
    "warm shutdown (SIGTERM) in the middle of retries",
    pools=EVERYWHERE,
    ci=("redis/gevent",),
)
def warm(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGTERM])


@row("9-soft", "soft shutdown in the middle of retries", pools=EVERYWHERE, doubles=1)
def soft(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGQUIT], {"worker_soft_shutdown_timeout": 1.0})


@row(
    "9-cold",
    "cold shutdown (SIGQUIT) in the middle of retries",
    pools=EVERYWHERE,
    doubles=1,
    ci=("redis/prefork",),
)
def cold(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGQUIT])


@row("9-twice", "a second SIGTERM in the middle of retries", pools=EVERYWHERE, doubles=1)
def twice(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGTERM, signal.SIGTERM])


@row(
    "9-impatient",
    "SIGTERM, then SIGQUIT, in the middle of retries",
    pools=EVERYWHERE,
    doubles=1,
)
def impatient(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGTERM, signal.SIGQUIT])
