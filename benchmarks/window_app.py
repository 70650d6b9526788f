"""The task that ``window.py`` sends, numbered."""

from __future__ import annotations

import os

from celery import Celery

from celery_resilience import install

app = Celery("window", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_default_queue="window",
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=16,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
if os.environ["BROKER_URL"].startswith("resilient-"):
    install(app)

_done = os.open(os.environ.get("DONE", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(name="window.note")
def note(number: int) -> None:
    """One line: this number has been done."""
    os.write(_done, f"{number}\n".encode())
