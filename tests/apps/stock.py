"""A stock Celery app without this package, which knows a task of the shop's: a rollback."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from celery import Celery

app = Celery("shop", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.task_default_queue = "shop"


@app.task(name="tests.apps.shop.asks", bind=True, acks_late=True)
def asks(self: Any, name: str, countdown: float) -> None:
    """Record when it ran, and with how many retries behind it."""
    assert "celery_resilience.worker.settle" not in sys.modules
    with open(os.environ["RECORD"], "a") as file:
        file.write(f"stock-{name} {self.request.retries} {time.time()}\n")
