"""Tasks that come back later; with STOCK they are plain Celery's, as in a worker without us.

Every start of a body is a line in the file RECORD: its name, the retry's number, the clock that all
processes of a machine share, and where its message says that it came from.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task
from kombu import Queue

from celery_resilience import ResilientTask, install

STOCK = "STOCK" in os.environ
QUEUE_TYPE = os.environ.get("QUEUE_TYPE", "classic")

app = Celery("late", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(
    task_default_queue="shop",
    task_default_queue_type=QUEUE_TYPE,
    task_create_missing_queue_type=QUEUE_TYPE,
    task_queues=[Queue(name, queue_arguments={"x-queue-type": QUEUE_TYPE}) for name in ("shop",)],
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    broker_native_delayed_delivery_queue_type="classic",
)
if not STOCK:
    install(app)


@app.task(base=Task if STOCK else ResilientTask, bind=True, max_retries=None)
def again(self: Any, name: str, delay: float, times: int) -> str:
    """Come back *times* times, each *delay* seconds later."""
    info = self.request.delivery_info
    with open(os.environ["RECORD"], "a") as file:
        came_from = f"{info['exchange']}|{info['routing_key']}"
        file.write(f"{name} {self.request.retries} {time.monotonic()} {came_from}\n")
    if self.request.retries < times:
        raise self.retry(countdown=delay)
    return name
