"""Rows 10, 15 and 16: retries that wait for a long time, beside stock workers, by other clocks."""

from __future__ import annotations

from pathlib import Path

from tests.faults.row import RABBITS, REDIS, row
from tests.faults.rows_connections import channels_time_out
from tests.faults.scene import Scene


@row(
    "10-visibility",
    "a delay longer than the Redis visibility timeout",
    brokers=REDIS,
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def visibility(scene: Scene) -> None:
    options = {"visibility_timeout": 3, "unacked_restore_interval": 1,
               "unacked_restore_throttle": 1}  # fmt: skip
    for _ in range(2):
        scene.worker(broker_options=options)
    for _ in range(10):
        scene.send("later", 10.0, starts=2)


@row(
    "10-consumer",
    "a delay longer than RabbitMQ's consumer_timeout",
    brokers=RABBITS,
    pools=("prefork", "threads"),
    patience=90,
)
def consumer_timeout(scene: Scene) -> None:
    with channels_time_out(scene, 4.0):
        scene.worker()
        for _ in range(10):
            scene.send("later", 10.0, starts=2)
        scene.wait(scene.places.are_final, scene.patience)


@row(
    "15-beside",
    "a stock worker and ours on one queue",
    pools=("prefork", "threads"),
    ci=("rabbitmq-classic/prefork",),
)
def beside(scene: Scene) -> None:
    scene.worker()
    scene.worker(stock="late")
    for _ in range(40):
        # Stock publishes a retry before it stores that state: another's SUCCESS may be there first.
        scene.send("flaky", 2, starts=3, by_record=True)
        scene.send("good")


@row(
    "15-rollback",
    "rollback to stock workers while retries wait",
    pools=("prefork",),
    ci=("redis/prefork",),
)
def rollback(scene: Scene) -> None:
    worker = scene.worker()
    for _ in range(10):
        scene.send("later", 10.0, starts=2)
    scene.wait(lambda: len(list(scene.lines("start"))) == 10)
    worker.terminate()
    if scene.on_redis:  # RabbitMQ moves them by itself
        release(scene)
    scene.worker(stock="late")


def release(scene: Scene) -> None:
    """``retries release --all``: everything that waits goes back to its queue, for any worker."""
    from celery.bin.base import CLIContext
    from click.testing import CliRunner

    from celery_resilience.cli.retries import retries

    context = CLIContext(app=scene.client.app, no_color=True, workdir=None)
    result = CliRunner().invoke(retries, ["release", "--all", "--yes"], obj=context)
    scene.expect(result.exit_code == 0, f"retries release said {result.output}")


@row(
    "16",
    "the clocks of two workers are 5 minutes apart",
    pools=("prefork", "threads"),
)
def clocks(scene: Scene) -> None:
    skewed = str(Path(__file__).parent / "skewed")
    scene.worker(env={"CLOCK_SKEW": "150", "PYTHONPATH": skewed})
    scene.worker(env={"CLOCK_SKEW": "-150", "PYTHONPATH": skewed})
    for _ in range(20):
        scene.send("later", 3.0, starts=2)
    scene.wait(scene.places.are_final, scene.patience)
    times: dict[str, list[float]] = {}
    for number, _, at in scene.lines("start"):
        times.setdefault(number, []).append(float(at))
    early = [n for n, (first, second) in times.items() if second - first < 2.9]
    scene.expect(not early, f"{len(early)} retries ran early")
