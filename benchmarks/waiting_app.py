"""The tasks of ``waiting.py``: the same on Celery's Task and, where SIDE is ours, on ours."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from celery import Celery
from kombu import Queue

from celery_resilience import install

QUEUE_TYPE = os.environ.get("QUEUE_TYPE", "classic")

app = Celery("waiting", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_default_queue="work",
    task_default_queue_type=QUEUE_TYPE,
    task_queues=[Queue("work", queue_arguments={"x-queue-type": QUEUE_TYPE})],
    task_acks_late=True,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
if os.environ["SIDE"] == "ours":
    install(app)

_told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def tell(*words: Any) -> None:
    """Tell the benchmark, by a datagram."""
    _told.sendto(" ".join(map(str, words)).encode(), os.environ["TELL"])


@app.task(name="probe")
def probe(number: int) -> None:
    tell("probe", number, time.monotonic())


@app.task(name="fail", bind=True, autoretry_for=(KeyError,), max_retries=None)
def fail(self: Any, payload: str, delay: float) -> None:
    """It fails once, is retried in *delay* seconds, and succeeds."""
    if self.request.retries == 0:
        raise self.retry(exc=KeyError("once"), countdown=delay)


@app.task(
    name="herd",
    bind=True,
    autoretry_for=(KeyError,),
    retry_backoff=60,
    retry_backoff_max=60,
    retry_jitter=True,
)
def herd(self: Any) -> None:
    if self.request.retries == 0:
        raise KeyError("once")


@app.task(name="late", bind=True, max_retries=None)
def late(self: Any, number: int, delay: float) -> None:
    """It tells when it asked for its retry and when that is run."""
    now = time.monotonic()
    if self.request.retries == 0:
        tell("failed", number, now, delay)
        raise self.retry(countdown=delay)
    tell("again", number, now)
