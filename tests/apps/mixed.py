"""The app of workers of several versions: it is put into the tree of an older one, and runs there.

Each start and each end of a body is a line in the file RECORD: the word, the task's name, the
version that runs it, and maybe all that have. It knows what every version since 0.1.0 has.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Queue

import celery_resilience
from celery_resilience import Policy, TransientError, install, on

KIND = os.environ.get("QUEUE_TYPE", "classic")

app = Celery("mixed", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(
    task_default_queue="work",
    task_default_queue_type=KIND,
    task_queues=[Queue("work", queue_arguments={"x-queue-type": KIND})],
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
install(app)
if "LEASE" in os.environ:  # a test of a worker's death need not wait as long as an operator
    for place in ("brokers.redis.leases", "brokers.held"):
        with contextlib.suppress(ImportError):
            leases: Any = importlib.import_module(f"celery_resilience.{place}")
            leases.LEASE, leases.RENEW = float(os.environ["LEASE"]), float(os.environ["LEASE"]) / 6
            leases.GRACE = 0.0

SOON = Policy(max_retries=2, backoff=0.1, jitter="none")


def record(word: str, name: str, *more: str) -> None:
    with open(os.environ["RECORD"], "a") as file:
        file.write(f"{' '.join([word, name, celery_resilience.__version__, *more])}\n")


@app.task(failure_policy=SOON)
def good(name: str, seconds: float) -> None:
    record("start", name)
    time.sleep(seconds)
    record("end", name)


@app.task(bind=True, failure_policy=SOON)
def flaky(self: Any, name: str, seconds: float) -> None:
    """Fail once."""
    record("start", name)
    time.sleep(seconds)
    if self.request.retries < 1:
        raise TransientError(name)
    record("end", name)


@app.task(failure_policy=SOON)
def hopeless(name: str) -> None:
    record("start", name)
    raise TransientError(name)


@app.task(bind=True, failure_policy=Policy(max_retries=2, backoff=3, jitter="none"))
def later(self: Any, name: str) -> None:
    """Fail twice; each retry is seconds away."""
    record("start", name)
    self.context["seen"] = [*self.context.get("seen", []), celery_resilience.__version__]
    if self.request.retries < 2:
        raise TransientError(name)
    record("end", name, ",".join(self.context["seen"]))


@app.task(failure_policy=Policy(on(ValueError).dead_letter()))
def fails_until(name: str, gate: str) -> None:
    """A dead letter, until the file *gate* is there."""
    record("start", name)
    if not Path(gate).exists():
        raise ValueError(name)
    record("end", name)


@app.task(failure_policy=SOON)
def holds(name: str, gate: str) -> None:
    """Run until the file *gate* is there."""
    record("start", name)
    while not Path(gate).exists():
        time.sleep(0.02)
    record("end", name)
