"""RedBeat keeps the schedule of beat in Redis."""

from __future__ import annotations

import os

from tests.ecosystem.apps.base import make

app = make("eco")
app.conf.update(
    redbeat_redis_url=os.environ["REDIS_URL"],
    beat_scheduler="redbeat.RedBeatScheduler",
    beat_max_loop_interval=1,
    beat_schedule={
        "each second": {"task": "eco.fine", "schedule": 1.0, "args": (1,)},
        "dies": {"task": "eco.dead", "schedule": 1.0},
    },
)
