"""The tasks that ``cost.py`` times: one body on Celery's Task, and on ours (ours, before).

A stock worker must not so much as import us: one task of ours makes a worker ours.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from kombu import Queue

QUEUE_TYPE = os.environ.get("QUEUE_TYPE", "classic")

app = Celery("cost", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
QUEUE = "cost-" + os.environ["SIDE"]
app.conf.update(
    task_default_queue=QUEUE,
    task_default_queue_type=QUEUE_TYPE,
    task_queues=[Queue(QUEUE, queue_arguments={"x-queue-type": QUEUE_TYPE})],
    task_acks_late=True,
    task_ignore_result="BACKEND_URL" not in os.environ,
    worker_prefetch_multiplier=16,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
OURS = os.environ["SIDE"] in {"ours", "before"}
if OURS:
    from celery_resilience import Policy, ResilientTask, install

    install(app, only=["ours.*"])

_done = os.open(os.environ.get("DONE", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def ran() -> None:
    """One byte for one run of a body: the benchmark watches the file grow."""
    os.write(_done, b".")


def load(side: str, path: str, tasks: int) -> None:
    """Send *tasks* of them, to a queue that has nothing else."""
    with app.connection_for_write() as connection:
        app.amqp.queues[QUEUE].bind(connection.default_channel).delete()
    with app.producer_pool.acquire() as producer:
        for _ in range(tasks):
            app.send_task(f"{side}.{path}", producer=producer)


@app.task(name="stock.success")
def stock_success() -> None:
    ran()


@app.task(name="stock.retry", bind=True, autoretry_for=(KeyError,), default_retry_delay=0)
def stock_retry(self: Any) -> None:
    ran()
    if self.request.retries == 0:
        raise KeyError("once")


if OURS:

    @app.task(
        name="ours.success",
        base=ResilientTask,
        failure_policy=Policy(max_retries=3, backoff=0),
    )
    def ours_success() -> None:
        ran()

    @app.task(
        name="ours.retry",
        base=ResilientTask,
        bind=True,
        autoretry_for=(KeyError,),
        default_retry_delay=0,
    )
    def ours_retry(self: Any) -> None:
        ran()
        if self.request.retries == 0:
            raise KeyError("once")
