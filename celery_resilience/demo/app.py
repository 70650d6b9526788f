"""The demo's Celery app: what a user of celery_resilience writes, and how the demo looks on.

The upper half is all there is to using it: ``install(app)``, ``base=ResilientTask``, a policy of
few retries, and a body that lets its errors out. The lower half tells the demo what happens, over
HTTP, so that the demo counts for itself and does not take the framework's word.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any
from urllib.request import ProxyHandler, build_opener

from celery import Celery, signals
from kombu import Queue

from celery_resilience import Policy, ResilientTask, classify, install
from celery_resilience.task.attempt import current_attempt

__all__ = ["DEAD_LETTERS", "LEDGER_URL", "PREFIX", "QUEUE", "app", "call"]

QUEUE = "resilience_demo"
DEAD_LETTERS = "resilience_demo.dead"
#: On Redis, all keys of the demo begin with it: nothing else in that database is touched.
PREFIX = "resilience_demo:"
#: The environment variable that says where to tell what happens.
LEDGER_URL = "RESILIENCE_DEMO_LEDGER"

#: The demo, which starts the worker, puts the broker's URL there.
ON_RABBITMQ = "amqp" in os.environ.get("CELERY_BROKER_URL", "").partition("://")[0]

#: How long a task waits for a service, in seconds.
TIMEOUT = 0.4

app = Celery("celery_resilience.demo")
app.conf.update(
    task_queues=[Queue(QUEUE, queue_arguments={"x-queue-type": "classic"})],
    task_default_queue=QUEUE,
    task_ignore_result=True,
    broker_transport_options={"global_keyprefix": PREFIX},
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    resilience_dead_letter_queue=DEAD_LETTERS,
    # What delays retries in a RabbitMQ belongs to all its apps: the demo could not take it away.
    resilience_hold_retries="worker" if ON_RABBITMQ else "auto",
)
install(app)

# Whatever proxy the environment names: the services are on this machine.
http = build_opener(ProxyHandler({}))


# Without a policy a transient failure would be retried for an hour and a half: an outage is
# survived, but a demo must not take that long.
@app.task(base=ResilientTask, bind=True, failure_policy=Policy(max_retries=3))
def call(self: Any, url: str) -> None:
    """Call a service, and let every error out: what it deserves is not this task's business."""
    tell("started", self.request.id)
    with http.open(url, timeout=TIMEOUT) as answer:
        if answer.read() == b"crash":
            os.kill(os.getpid(), signal.SIGKILL)  # as if it had run out of memory
    tell("succeeded", self.request.id)


def tell(what: str, task_id: str = "", **facts: Any) -> None:
    """Tell the demo's ledger."""
    body = json.dumps({"what": what, "task": task_id, **facts}).encode()
    http.open(os.environ[LEDGER_URL], body, timeout=10).close()


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    tell("ready")


@signals.task_retry.connect
def _retried(request: Any, reason: Any, **_: Any) -> None:
    tell("retry", request.id, delay=reason.when, **_verdict(reason.exc))


@signals.task_failure.connect
def _failed(task_id: str, exception: BaseException, **_: Any) -> None:
    tell("dead", task_id, **_verdict(exception))


def _verdict(exception: BaseException) -> dict[str, str]:
    """What the failed attempt was found to be: where its body ran, the verdict is at hand; of a
    process that died the worker tells, and all there is is the exception."""
    attempt = current_attempt.get()
    outcome = None if attempt is None else attempt.decided
    verdict = classify(exception) if outcome is None else outcome.verdict
    return {"kind": verdict.kind.value, "rule": verdict.rule, "hint": verdict.hint}
