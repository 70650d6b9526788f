"""The shop, with queues that let go of a message in ways of their own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kombu import Queue

from celery_resilience import PermanentError, Policy, ResilientTask, TransientError, on
from tests.apps.shop import app, record

__all__ = ["app", "gated"]

app.conf.task_queues = [
    *app.conf.task_queues,
    Queue("unheld", no_ack=True),
    Queue("fleeting", auto_delete=True),
    Queue("volatile", durable=False),
]


class Now(TransientError):
    """To be tried again at once."""


@app.task(
    bind=True,
    base=ResilientTask,
    failure_policy=Policy(on(Now).retry(backoff=0, jitter="none"), backoff=1, jitter="none"),
)
def gated(self: Any, name: str, end: str, gate: str) -> str:
    """The first time, wait for the file *gate*, and end so: retry, now, or letter."""
    record(name)
    if Path(os.environ["RECORD"]).read_text().count(f"{name}\n") == 1:
        while not Path(gate).exists():
            time.sleep(0.02)
        raise {"retry": TransientError, "now": Now, "letter": PermanentError}[end](name)
    return f"{name} done"
