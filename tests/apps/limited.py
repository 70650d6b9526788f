"""A rate limit, a channel that RabbitMQ closes once, and a loop that breaks."""

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


@worker_ready.connect
def break_the_loop(sender: Any, **kwargs: Any) -> None:
    """As soon as there is a file ``LOOP_ERROR``, in a pool of threads or greenlets."""
    path, drain = os.environ.get("LOOP_ERROR"), sender.connection.drain_events

    def drain_events(**options: Any) -> Any:
        if path and os.path.exists(path):
            raise RuntimeError("the loop is broken")
        return drain(**options)

    if path:
        sender.connection.drain_events = drain_events


@control_command(args=[("path", str)])  # type: ignore[untyped-decorator,unused-ignore]
def stall(state: Any, path: str) -> None:
    """The worker's loop stands until there is a file *path*."""
    print("the loop stands", flush=True)
    while not os.path.exists(path):
        time.sleep(0.02)
