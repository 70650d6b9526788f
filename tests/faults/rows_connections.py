"""Row 7: connections are lost again and again, and nothing dies."""

from __future__ import annotations

import time

from tests.faults.row import EVERYWHERE, row
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
    until = time.monotonic() + (90 if scene.full else 12)
    while time.monotonic() < until:
        closes = time.monotonic() + 3
        while time.monotonic() < closes:
            scene.send("good", 0.2)
            scene.send("flaky", 1, 0.05, starts=2)
            scene.send("later", 1.0, 1, starts=2)
            scene.send("refuses", ends="letter", reasons="permanent")
            scene.pause(0.2)
        close_connections(scene)
