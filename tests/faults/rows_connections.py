"""Row 7: connections are lost again and again, and nothing dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.row import EVERYWHERE, RABBITS, row
from tests.faults.scene import Scene


def close_connections(scene: Scene) -> None:
    """Close every connection of the workers to the broker; new ones are taken at once."""
    if scene.on_redis:
        scene.cut()
        scene.door.mend()
    else:
        scene.deaths += 1
        scene.servers.rabbitmq.close_connections(scene.vhost)


@row(
    "7-closed",
    "connections closed every 3 s, for 12 s (90 s with --full)",
    pools=EVERYWHERE,
    doubles=1,
    forks=True,
    window=True,
    patience=120,
)
def closed(scene: Scene) -> None:
    for _ in range(2):
        scene.worker(concurrency=4)
    until, losses = time.monotonic() + (90 if scene.full else 12), 0
    while time.monotonic() < until:
        closes = time.monotonic() + 3
        while time.monotonic() < closes:
            scene.send("good", 0.2)
            scene.send("flaky", 1, 0.05, starts=2)
            scene.send("later", 1.0, 1, starts=2)
            scene.send("refuses", ends="letter", reasons="permanent")
            scene.pause(0.2)
        close_connections(scene)
        losses += 1
        # A body of 0.2 s meets one of four losses at most, and of thirty some. (Gevent, a quorum
        # queue, 90 s: eight starts at most where two are right, as many as eleven on stock Celery.)
        scene.doubles = -(-losses // 5)


@contextmanager
def channels_time_out(scene: Scene, seconds: float) -> Iterator[None]:
    """RabbitMQ closes a channel on which a message is not acknowledged within *seconds*."""
    rabbit = scene.servers.rabbitmq
    rabbit.evaluate(f"application:set_env(rabbit, consumer_timeout, {seconds * 1000:.0f}).")
    # It looks once in this many milliseconds; from the next channel on.
    rabbit.evaluate("application:set_env(rabbit, channel_tick_interval, 1000).")
    try:
        yield
    finally:
        rabbit.evaluate("application:set_env(rabbit, consumer_timeout, 1800000).")
        rabbit.evaluate("application:set_env(rabbit, channel_tick_interval, 60000).")


@row(
    "7-timeout",
    "bodies that run for several times RabbitMQ's consumer_timeout, in two workers",
    brokers=RABBITS,
    pools=EVERYWHERE,
    # As often as it is delivered while somebody else runs it: a solo worker can't say so.
    doubles=3,
    patience=120,
    ci=("rabbitmq-classic/prefork",),
)
def timeout(scene: Scene) -> None:
    with channels_time_out(scene, 2.0):
        for _ in range(2):
            scene.worker(supervised=True)
        for _ in range(3):
            scene.send("good", 12.0)
        for _ in range(5):
            scene.send("good", 0.1)
        scene.wait(scene.places.are_final, scene.patience)
        rabbit = scene.servers.rabbitmq

        def is_empty() -> bool:  # a copy may have been published of what was delivered again
            # It may come back from a delay queue between two looks.
            queues = "work", *scene.places.delay_queues(), "work"
            return not any(rabbit.messages(scene.vhost, queue) for queue in queues)

        # What was delivered again comes to its end. A solo worker can't acknowledge in time.
        scene.wait(is_empty, 240)
