"""Row 9: a worker is told to end in the middle of retries."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from tests.faults.row import EVERYWHERE, row
from tests.faults.scene import Scene


def _in_the_middle(
    scene: Scene,
    signals: Sequence[signal.Signals],
    conf: dict[str, object] | None = None,
    env: dict[str, str] | None = None,
    to_all: bool = False,
) -> None:
    for _ in range(30):
        scene.send("flaky", 2, 0.2, starts=3)
    worker = scene.worker(conf=conf, env=env)
    scene.wait(lambda: sum(scene.starts().values()) >= 6)
    for number, each in enumerate(signals):
        if number:
            scene.pause(0.5)
        if to_all:
            os.killpg(worker.pid, each)
        else:
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


@row(
    "9-group",
    "SIGTERM to all of the process group in the middle of retries",
    pools=EVERYWHERE,
    doubles=1,
    ci=("rabbitmq-quorum/prefork",),
)
def group(scene: Scene) -> None:
    _in_the_middle(scene, [signal.SIGTERM], to_all=True)


@row(
    "9-remap",
    "the same with REMAP_SIGTERM=SIGQUIT and a soft shutdown",
    pools=EVERYWHERE,
    doubles=1,
)
def remap(scene: Scene) -> None:
    _in_the_middle(
        scene, [signal.SIGTERM], {"worker_soft_shutdown_timeout": 1.0},
        {"REMAP_SIGTERM": "SIGQUIT"}, to_all=True,
    )  # fmt: skip


@row(
    "9-groups",
    "bodies that are longer than each of five lives of their worker: SIGTERM to all of the group",
    pools=EVERYWHERE,
    doubles=5,
    ci=("rabbitmq-classic/gevent",),
)
def groups(scene: Scene) -> None:
    """More often than ``max_worker_losses``: no redelivery is counted for it."""
    _lives(scene, {}, {})


@row(
    "9-remaps",
    "the same with REMAP_SIGTERM=SIGQUIT and a soft shutdown",
    pools=EVERYWHERE,
    doubles=5,
)
def remaps(scene: Scene) -> None:
    _lives(scene, {"worker_soft_shutdown_timeout": 0.5}, {"REMAP_SIGTERM": "SIGQUIT"})


def _lives(scene: Scene, conf: dict[str, object], env: dict[str, str]) -> None:
    numbers = [scene.send("good", 2.0, starts=1) for _ in range(4)]
    worker = scene.worker(conf=conf, env=env)
    for _ in range(4):
        before = sum(scene.starts().values())
        scene.wait(
            lambda before=before: sum(scene.starts().values()) > before or scene.places.are_final()
        )
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(30)
        worker.start()
    scene.expect(
        scene.wait(lambda: all(scene.started(number) for number in numbers)), "not all have begun"
    )
