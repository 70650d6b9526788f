"""The app that the integration tests run in real workers.

Every start of a body is appended to the file RECORD, outside of Celery, so that a test can count
executions whatever the framework says.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.signals import task_postrun
from kombu import Queue

from celery_resilience import (
    Discard,
    PermanentError,
    Policy,
    RateLimitedError,
    ResilientTask,
    TransientError,
    install,
    on,
)

app = Celery("shop", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(
    task_default_queue="shop",
    task_default_queue_type=os.environ.get("QUEUE_TYPE", "classic"),
    task_queues=[
        Queue(name, queue_arguments={"x-queue-type": os.environ.get("QUEUE_TYPE", "classic")})
        for name in ("shop", "other")
    ],
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    accept_content=["json", "pickle", "msgpack", "yaml"],
    task_protocol=int(os.environ.get("PROTOCOL", "2")),
    broker_transport_options=json.loads(os.environ.get("BROKER_OPTIONS", "{}")),
    resilience_app_version="1.2.3",
)
install(app)
os.environ.setdefault("MAIN_PID", str(os.getpid()))  # before the pool forks
if "LEASE" in os.environ:  # a test of a worker's death need not wait as long as an operator
    from celery_resilience.brokers.redis import leases
    from celery_resilience.worker import peers

    leases.LEASE = float(os.environ["LEASE"])
    leases.RENEW = float(os.environ.get("RENEW", leases.LEASE / 6))
    peers._PATIENCE, peers._UNANSWERED, peers._PAUSE = 2.0, 4.0, 0.5
    leases.GRACE = 0.0  # the test's server may have been started a moment ago
if "AHEAD" in os.environ:  # a pool that was quick lately takes so many more than it can begin
    from celery_resilience.transport.slots import Pace

    Pace.quick = lambda self: int(os.environ["AHEAD"])  # type: ignore[method-assign]
if os.environ["BROKER_URL"].startswith("filesystem:"):
    from tests.filesystem import write_whole_files

    write_whole_files()


class Quick(ResilientTask):
    """Retries soon, so that a test is over soon."""

    abstract = True
    failure_policy = Policy(max_retries=3, backoff=0.05, jitter="none")


def record(*words: Any) -> None:
    """One line for one start of a body; appending a short line is atomic."""
    with open(os.environ["RECORD"], "a") as file:
        file.write(" ".join(str(word) for word in words) + "\n")


@app.task(base=Quick, bind=True)
def flaky(self: Any, name: str, failures: int, **ignored: Any) -> str:
    """Fail *failures* times, then succeed."""
    record(name, self.request.retries)
    if self.request.retries < failures:
        raise TransientError(f"{name} is not ready")
    return f"{name} done"


@app.task(base=Quick)
def refused(name: str) -> None:
    record(name)
    raise PermanentError(f"no such customer: {name}")


@app.task(base=Quick)
def broken(name: str, **ignored: Any) -> None:
    record(name)
    raise TransientError(f"{name} never works")


@app.task(base=ResilientTask)
def bug(name: str) -> None:
    record(name)
    raise TypeError("unsupported operand")


@app.task(base=Quick)
def discarded(name: str) -> None:
    record(name)
    raise Discard("order was cancelled")


@app.task(base=Quick, throws=(KeyError,))
def expected(name: str) -> None:
    record(name)
    raise KeyError(name)


@app.task(base=Quick, bind=True)
def limited(self: Any, name: str) -> str:
    record(name, self.request.retries)
    if Path(os.environ["RECORD"]).read_text().count(name) < 3:
        raise RateLimitedError("slow down", retry_after=0.1)
    return "served"


@app.task(base=Quick)
def murdered(name: str) -> None:
    """Kill the process that runs it, every time."""
    record(name)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=Quick)
def exits(name: str) -> None:
    record(name)
    raise SystemExit(3)


@app.task(base=Quick)
def out_of_memory(name: str) -> None:
    record(name)
    raise MemoryError("a list too long")


class Unpicklable(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lock = open(os.devnull)  # noqa: SIM115

    def __reduce__(self) -> Any:
        raise RuntimeError("not to be pickled")

    def __str__(self) -> str:
        raise RuntimeError("not to be shown")


@app.task(base=Quick)
def unpicklable(name: str) -> None:
    record(name)
    raise Unpicklable(name)


@app.task(base=ResilientTask, failure_policy=Policy(on(Exception).dead_letter()))
def slow(name: str, seconds: float = 30.0) -> str:
    record(name)
    time.sleep(seconds)
    return name


@app.task(base=ResilientTask, bind=True, max_retries=2)
def asks(self: Any, name: str, countdown: float = 0.05) -> str:
    """Ask for a retry Celery's way, until there are none left."""
    record(name, self.request.retries)
    try:
        raise ConnectionError(f"{name} is away")
    except ConnectionError as exc:
        raise self.retry(exc=exc, countdown=countdown)  # noqa: B904


@app.task(
    base=ResilientTask, autoretry_for=(ZeroDivisionError,), max_retries=2, default_retry_delay=0
)
def stated(name: str) -> None:
    record(name)
    1 / 0  # noqa: B018


@app.task
def plain(*args: Any, **kwargs: Any) -> Any:
    """A stock task beside ours."""
    record("plain", args, kwargs)
    return args


@app.task(base=Quick, dead_letter_queue="dead.{queue}")
def own_letters(name: str) -> None:
    record(name)
    raise PermanentError("it has a queue of its own")


@app.task(
    base=ResilientTask, failure_policy=Policy(on(ValueError).dead_letter(queue="dead_values"))
)
def rule_letters(name: str) -> None:
    record(name)
    raise ValueError(name)


@app.task(base=ResilientTask, failure_policy=Policy(max_retries=1, backoff=600, jitter="none"))
def parks(name: str, *args: Any, **kwargs: Any) -> None:
    """Fail, and wait ten minutes for the next attempt."""
    record(name)
    raise TransientError(name)


@app.task(base=Quick, bind=True)
def add(self: Any, x: int, y: int = 0, failures: int = 1) -> int:
    """Fail *failures* times, then add."""
    record(f"add-{x}-{y}", self.request.retries)
    if self.request.retries < failures:
        raise TransientError("not yet")
    return x + y


@app.task(base=Quick)
def total(numbers: list[int]) -> int:
    record("total")
    return sum(numbers)


@app.task(base=Quick, bind=True)
def waits(self: Any, name: str, gate: str) -> str:
    """The first time, wait until the file *gate* is there, and fail."""
    record(name, self.request.retries)
    if Path(os.environ["RECORD"]).read_text().count(f"{name} ") == 1:
        while not Path(gate).exists():
            time.sleep(0.02)
        raise TransientError("the gate has opened")
    return f"{name} done"


@app.task(base=ResilientTask)
def opens(name: str, gate: str) -> str:
    """Wait until the file *gate* is there."""
    record(name)
    while not Path(gate).exists():
        time.sleep(0.02)
    return f"{name} done"


@app.task(base=ResilientTask)
def fails_at_length(name: str, gate: str) -> None:
    """Wait until the file *gate* is there, and fail with many words."""
    record(name)
    while not Path(gate).exists():
        time.sleep(0.02)
    raise PermanentError("no" * 20_000)


@app.task(base=ResilientTask)
def kills_worker(name: str, after: float = 0.3) -> None:
    """The whole worker, as the OOM killer does; its children end with it."""
    record(name)
    time.sleep(after)
    os.kill(int(os.environ["MAIN_PID"]), signal.SIGKILL)
    time.sleep(60)


@app.task(base=ResilientTask)
def done_then_killed(name: str) -> str:
    """Its worker dies of it three times: the last time it has succeeded, which is stored, and is
    not acknowledged yet."""
    record(name)
    if Path(os.environ["RECORD"]).read_text().count(name) < 3:
        _kill_the_worker()
    return name


@task_postrun.connect(sender=done_then_killed)
def _kill_the_worker(**_: Any) -> None:
    os.kill(int(os.environ["MAIN_PID"]), signal.SIGKILL)
    time.sleep(60)


@app.task(base=ResilientTask, bind=True, failure_policy=Policy(max_elapsed=4, backoff=0.5))
def puts_back(self: Any, name: str, times: int) -> str:
    """Reject the message, to have it again later, the first *times*."""
    record(name)
    if Path(os.environ["RECORD"]).read_text().count(f"{name}\n") <= times:
        raise Reject("not now", requeue=True)
    return f"{name} done"
