"""The task that ``wakeup.py`` times."""

from __future__ import annotations

import os
import time

from celery import Celery
from kombu import Queue

from celery_resilience import install

QUEUES = ["wakeup.a", "wakeup.b", "wakeup.c", "wakeup.d"]

app = Celery("wakeup", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_default_queue=QUEUES[0],
    task_queues=[Queue(name) for name in QUEUES],
    task_acks_late=True,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
if os.environ["BROKER_URL"].startswith("resilient-"):
    install(app)

_starts = os.open(os.environ.get("STARTS", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(name="wakeup.started")
def started(sent: float) -> None:
    """One line: how long ago this was sent, in ms."""
    os.write(_starts, f"{(time.time() - sent) * 1000:.3f}\n".encode())
