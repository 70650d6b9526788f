"""The task that ``burst.py`` sends: one line for each run says which worker ran it, and when."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from celery_resilience import install

QUEUE = "burst"

app = Celery("burst", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late="EARLY" not in os.environ,
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("MULTIPLIER", "4")),
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
install(app)

_runs = os.open(os.environ.get("RUNS", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(name="burst.takes", bind=True)
def takes(self: Any, seconds: float) -> None:
    """Take *seconds*, then write the worker, and when it began and ended."""
    began = time.time()
    time.sleep(seconds)
    line = f"{self.request.hostname} {began:.3f} {time.time():.3f}\n"
    os.write(_runs, line.encode())


@app.task(name="burst.quick")
def quick() -> None:
    """One byte."""
    os.write(_runs, b".")
