"""Rows 11 and 12: tasks that are dropped on their owner's word, and tasks that are rejected."""

from __future__ import annotations

from tests.faults.row import EVERYWHERE, row
from tests.faults.scene import Scene


@row(
    "11-expired",
    "tasks that expired before a worker came",
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def expired(scene: Scene) -> None:
    for _ in range(5):
        # On RabbitMQ the broker itself drops them, and nobody is told.
        number = scene.number("good", ends="dropped", starts=0)
        scene.client.app.send_task(
            "tests.faults.app.good", (number,), task_id=number, queue="work",
            headers={"expires": "2001-01-01T00:00:00+00:00"},
        )  # fmt: skip
        scene.send("good")
    scene.broker_holds(10)
    scene.worker()


@row(
    "11-kept",
    "expired tasks with --dead-letter-expired",
    pools=("prefork", "threads"),
    ci=("rabbitmq-classic/prefork",),
)
def expired_kept(scene: Scene) -> None:
    from celery_resilience.worker.expiration import keep_expiring

    if not scene.stock:  # as install does for every app
        scene.client.app.conf.resilience_dead_letter_expired = True
        keep_expiring(scene.client.app)
    for _ in range(5):
        scene.send("good", expires=0.2, ends="letter", starts=0, reasons="expired")
        scene.send("good")
    scene.pause(1.0)  # so that each has expired
    scene.expect(scene.client.count("work") == 10, "the broker has dropped expired tasks itself")
    scene.worker(arguments=["--dead-letter-expired"])


@row(
    "11-revoked",
    "tasks revoked while they lie in the queue",
    # Stock Celery does not ask again about what lies in a thread pool's own queue.
    ci=("redis/prefork",),
)
def revoked(scene: Scene) -> None:
    scene.worker(concurrency=1)
    gate = scene.directory / "gate"
    scene.send("gated", str(gate))
    scene.wait(lambda: list(scene.lines("start")))
    doomed = [scene.send("good", ends="dropped", starts=0) for _ in range(3)]
    scene.send("good")
    scene.client.app.control.revoke(doomed, reply=True, timeout=5)
    gate.touch()


@row(
    "11-terminated",
    "running tasks that are terminated",
    ci=("redis/prefork",),
)
def terminated(scene: Scene) -> None:
    scene.worker()
    doomed = [scene.send("slow", ends="dropped") for _ in range(2)]
    scene.wait(lambda: len(list(scene.lines("start"))) == 2)
    scene.client.app.control.revoke(doomed, terminate=True, signal="SIGKILL", reply=True, timeout=5)
    scene.send("good")


@row(
    "11-waiting",
    "a waiting retry whose task is revoked, over a restart",
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def waiting(scene: Scene) -> None:
    worker = scene.worker(arguments=[f"--statedb={scene.directory / 'state'}"])
    doomed = scene.send("later", 3.0, ends="dropped")
    scene.send("later", 3.0, starts=2)
    scene.wait(lambda: len(list(scene.lines("start"))) == 2)
    scene.client.app.control.revoke(doomed, reply=True, timeout=5)
    worker.terminate()
    worker.start()


@row(
    "12-reject",
    "Reject(requeue=False)",
    pools=EVERYWHERE,
    ci=("redis/prefork",),
)
def rejected(scene: Scene) -> None:
    scene.worker()
    for _ in range(5):
        scene.send("rejects", ends="letter", reasons="rejected")
        scene.send("good")


@row(
    "12-requeue",
    "Reject(requeue=True) in a loop",
    pools=("prefork", "threads"),
    patience=120,
)
def requeued(scene: Scene) -> None:
    scene.worker()
    # Its policy's deadline ends it, after a day by default; until then its turns come ever later.
    number = scene.send("rejects", True, ends="waiting letter", starts=20, reasons="rejected")
    for _ in range(5):
        scene.send("good")
    scene.wait(lambda: scene.started(number) >= 3, scene.patience, message="its third turn")
