"""Rows 2 to 4: the process that runs the body dies, or all of the worker."""

from __future__ import annotations

from tests.faults.row import EVERYWHERE, row
from tests.faults.scene import Scene


def _one_among_many(scene: Scene, how: str, task: str = "poison", starts: int = 3) -> None:
    for number in range(200):
        if number == 20:
            scene.send(task, how, ends="letter", starts=starts, reasons="worker_lost")
        scene.send("good")
    scene.broker_holds(201)
    scene.worker()


@row(
    "2-kill",
    "pool child killed (-9): one poison task among 200 good",
    ci=("redis/prefork", "rabbitmq-quorum/prefork"),
)
def killed(scene: Scene) -> None:
    _one_among_many(scene, "kill")


@row("2-segfault", "pool child segfaults: one poison task among 200 good")
def segfault(scene: Scene) -> None:
    _one_among_many(scene, "segfault")


@row("2-memory", "pool child out of memory: one poison task among 200 good")
def memory(scene: Scene) -> None:
    _one_among_many(scene, "memory")


@row("2-exit", "pool child leaves by os._exit: one poison task among 200 good")
def exits(scene: Scene) -> None:
    _one_among_many(scene, "exit")


@row(
    "2-once",
    "pool child killed by a task that states no retries",
    ci=("rabbitmq-classic/prefork",),
)
def no_retries(scene: Scene) -> None:
    _one_among_many(scene, "kill", "poison_without_retries", starts=1)


@row(
    "2-done",
    "pool child killed after the success was stored",
    # On a busy machine billiard may see the death before the word that the child had begun: it then
    # gives the body to another one.
    doubles=1,
    ci=("redis/prefork",),
)
def done_already(scene: Scene) -> None:
    scene.worker()
    for _ in range(5):
        scene.send("dies_when_done")
        scene.send("good")


@row(
    "3",
    "a task kills the whole worker, which a supervisor restarts",
    pools=("prefork", "threads", "solo"),
    patience=240,
    window=True,
)
def whole_worker(scene: Scene) -> None:
    for number in range(40):
        if number == 5:
            scene.send("poison", "worker", ends="letter", starts=3, reasons="worker_lost")
            # Neither does one that states no retries: who is the culprit is not known.
            scene.send(
                "poison_without_retries", "worker", ends="letter", starts=3, reasons="worker_lost"
            )
        scene.send("good", 0.05, starts=7)
    scene.broker_holds(42)
    scene.worker(supervised=True)
    if scene.cell.broker != "kombu-redis":
        scene.wait(scene.places.are_final, scene.patience)
        # What had ended, and was not acknowledged before its worker was killed, runs again.
        scene.wait(lambda: not scene.places.stuck() and not scene.client.count("work"))


def _held(scene: Scene) -> None:
    """Tasks that run, tasks that are reserved, retries that wait."""
    for _ in range(4):
        scene.send("later", 3.0, starts=3)
    for _ in range(30):
        scene.send("good", 0.3, starts=2)


@row(
    "4-restart",
    "whole worker killed (-9), and started again",
    pools=EVERYWHERE,
    doubles=1,
    window=True,
    ci=(
        "redis/prefork",
        "kombu-redis/prefork",
        "rabbitmq-classic/prefork",
    ),
)
def restarted(scene: Scene) -> None:
    _held(scene)
    worker = scene.worker()
    scene.wait(lambda: sum(scene.starts().values()) >= 7)
    scene.kill(worker)
    worker.start()


@row(
    "4-second",
    "whole worker killed (-9), a second one alive",
    pools=("prefork", "threads"),
    doubles=1,
    window=True,
)
def second_worker(scene: Scene) -> None:
    _held(scene)
    worker = scene.worker()
    # Longer than a lease: what a living worker runs is nobody else's.
    long = scene.send("good", 50.0 if scene.full else 5.0, starts=1)
    scene.worker()
    scene.wait(lambda: sum(scene.starts().values()) >= 7)
    scene.kill(worker)
    scene.tasks[long].starts = 2  # it may have been on the one that was killed


@row(
    "4-main",
    "the worker's main process alone killed (-9), its children notice",
    doubles=1,
    window=True,
)
def main_process(scene: Scene) -> None:
    _held(scene)
    worker = scene.worker()
    scene.wait(lambda: sum(scene.starts().values()) >= 7)
    scene.kill(worker, main_alone=True)
    worker.start()


@row(
    "4-early",
    "the worker is killed in the body of a task with acks_late=False: at most once",
    pools=EVERYWHERE,
    ci=("redis/solo",),
)
def early(scene: Scene) -> None:
    gate = scene.directory / "gate"
    first = scene.worker(concurrency=1)
    # It is in no place any more, as its owner has asked for: so it is not one of the numbered.
    scene.client.app.send_task(
        "tests.faults.app.early", ("early", str(gate)), task_id="early", queue="work"
    )
    scene.wait(lambda: scene.started("early"))
    if scene.cell.pool == "solo":  # in the others the loop goes on beside the body
        scene.expect(not scene.places.stuck(), "it is held while its body runs")
    elif scene.on_redis:
        scene.wait(lambda: not scene.places.stuck())
    else:  # the body may begin before its acknowledgement has arrived
        scene.wait(lambda: not scene.servers.rabbitmq.messages(scene.vhost, "work"))
    scene.kill(first)
    gate.touch()
    scene.worker(concurrency=1)
    for _ in range(3):
        scene.send("good")
    scene.wait(scene.places.are_final, 60)
    scene.expect(scene.started("early") == 1, f"it was started {scene.started('early')} times")
