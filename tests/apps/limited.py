"""A rate limit, and a channel that RabbitMQ closes once."""

from __future__ import annotations

import os
import time
from typing import Any

from celery.signals import worker_ready
from celery.worker.control import control_command

from celery_resilience import ResilientTask
from tests.apps.shop import app, record


@app.task(base=ResilientTask, rate_limit="1/m")
def rated(name: str) -> str:
    record(name)
    return name


@worker_ready.connect
def break_the_channel(sender: Any, **kwargs: Any) -> None:
    """Once, in a second: as ``consumer_timeout`` does."""
    once = os.environ.get("CHANNEL_ERROR")
    if once and not os.path.exists(once):
        with open(once, "w"):
            pass
        sender.timer.call_after(1, sender.task_consumer.channel.basic_ack, (999_999,))


@control_command(args=[("path", str)])  # type: ignore[untyped-decorator,unused-ignore]
def stall(state: Any, path: str) -> None:
    """The worker's loop stands until there is a file *path*."""
    print("the loop stands", flush=True)
    while not os.path.exists(path):
        time.sleep(0.02)
