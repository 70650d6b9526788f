"""A plain Celery app, for tests of the fixtures themselves."""

from __future__ import annotations

import os

from celery import Celery

app = Celery("plain", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.task_default_queue_type = os.environ["QUEUE_TYPE"]
app.conf.worker_detect_quorum_queues = True


@app.task
def add(x: int, y: int) -> int:
    return x + y
