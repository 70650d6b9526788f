"""An app whose queues and settings a test chooses: CONF and QUEUES, both JSON."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue

from celery_resilience import PermanentError, Policy, ResilientTask, TransientError, install

app = Celery("rabbits", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(
    task_default_queue="shop",
    task_default_queue_type=os.environ.get("QUEUE_TYPE", "classic"),
    task_queues=[
        Queue(name, Exchange(""), routing_key=name, queue_arguments=arguments)
        for name, arguments in json.loads(os.environ.get("QUEUES", '{"shop": {}}')).items()
    ],
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("CONF", "{}")),
)
install(app)


def record(*words: Any) -> None:
    with open(os.environ["RECORD"], "a") as file:
        file.write(" ".join(str(word) for word in words) + "\n")


@app.task
def good(name: str) -> str:
    record(name, time.time())
    return name


@app.task
def waits(name: str) -> None:
    """Until the file GATE is there."""
    record(name)
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.1)
    record(name, "ended")


@app.task
def rejects(name: str) -> None:
    record(name)
    raise Reject("not here", requeue=False)


@app.task
def dies(name: str) -> None:
    record(name)
    raise PermanentError(name)


@app.task(base=ResilientTask, bind=True)
def again(self: Any, name: str, seconds: float) -> str:
    """Fail once, and wait *seconds*."""
    record(name)
    if not self.request.retries:
        raise TransientError(name, retry_after=seconds)
    return name


again.failure_policy = Policy(max_retries=1, backoff=0, jitter="none", max_elapsed=None)
