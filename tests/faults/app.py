"""The tasks of the fault matrix, in our worker or, with STOCK set, in a stock one.

They state their retries in Celery's own words, so that both read the same. Each start and each end
of a body is a line in the file RECORD, outside of Celery: what is counted is what happened.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu import Queue
from kombu.exceptions import OperationalError

from tests.faults.exotic import EXOTIC

#: "": ours; "early": stock Celery's defaults; "late": with acks_late and reject_on_worker_lost.
STOCK = os.environ.get("STOCK", "")

app = Celery("faults", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(
    task_default_queue="work",
    task_default_queue_type=os.environ.get("QUEUE_TYPE", "classic"),
    task_queues=[
        Queue("work", queue_arguments={"x-queue-type": os.environ.get("QUEUE_TYPE", "classic")})
    ],
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "4")),
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get("BROKER_OPTIONS", "{}")),
    # A result backend that is away is not waited for: a minute's outage would take a quarter of
    # an hour to count.
    result_backend_transport_options={"retry_policy": {"max_retries": 2, "interval_max": 0.2}},
    **json.loads(os.environ.get("CONF", "{}")),
)
if STOCK == "late":  # else nobody says a word of it: what is written holds for our worker too
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
if not STOCK:
    from celery_resilience import install

    install(app)


#: While this file is there, nobody is told the address of this name.
SILENCE, NAMED = Path(os.environ.get("SILENCE", "/nowhere/silence")), "broker.test"
_resolve = socket.getaddrinfo


def resolve(host: Any, *args: Any, **options: Any) -> Any:
    """As socket.getaddrinfo, but the name server may hang."""
    if host != NAMED:
        return _resolve(host, *args, **options)
    while SILENCE.exists():
        time.sleep(0.05)
    return _resolve("127.0.0.1", *args, **options)


socket.getaddrinfo = resolve


class NotReady(Exception):
    """What a retry may help."""


def record(*words: Any) -> None:
    """One line; appending a short line is atomic."""
    with open(os.environ["RECORD"], "a") as file:
        file.write(" ".join(str(word) for word in words) + "\n")


@signals.task_failure.connect
def note_failure(task_id: str = "", **kwargs: Any) -> None:
    record("failure", task_id)


SOON: dict[str, Any] = {"max_retries": 3, "default_retry_delay": 0.1}


@app.task
def good(number: str, seconds: float = 0.0) -> str:
    record("start", number, os.getpid())
    if seconds:
        time.sleep(seconds)
    record("end", number)
    return number


@app.task(acks_late=False)
def early(number: str, gate: str) -> None:
    """At most once: it is acknowledged before it begins."""
    record("start", number, os.getpid())
    while not Path(gate).exists():
        time.sleep(0.02)
    record("end", number)


@app.task(ignore_result=True)
def quiet(number: str, seconds: float = 0.0) -> None:
    """It needs no result store."""
    record("start", number, os.getpid())
    if seconds:
        time.sleep(seconds)
    record("end", number)


@app.task(bind=True, autoretry_for=(OperationalError,), max_retries=100, default_retry_delay=0.5)
def publishes(self: Any, number: str, other: str, gate: str) -> str:
    """Send the task *other* when the file *gate* is there."""
    record("start", number, os.getpid())
    while not Path(gate).exists():
        time.sleep(0.02)
    try:
        app.send_task("tests.faults.app.good", (other,), task_id=other, queue="work")
    except OperationalError:
        record("refused", number)
        raise
    record("end", number)
    return number


@app.task
def follows(previous: Any, number: str) -> str:
    """The next member of a chain."""
    record("start", number)
    record("end", number)
    return number


@app.task(bind=True, autoretry_for=(NotReady,), **SOON)
def flaky(self: Any, number: str, failures: int = 1, seconds: float = 0.0) -> str:
    """Fail *failures* times, then succeed; each attempt takes *seconds*."""
    record("start", number, os.getpid())
    if seconds:
        time.sleep(seconds)
    if self.request.retries < failures:
        raise NotReady(number)
    record("end", number)
    return number


@app.task(bind=True, autoretry_for=(NotReady,), max_retries=3)
def later(self: Any, number: str, delay: float, failures: int = 1) -> str:
    """Fail *failures* times and ask for a retry in *delay* seconds each time."""
    record("start", number, os.getpid(), time.monotonic())  # the same clock in every process
    if self.request.retries < failures:
        raise self.retry(exc=NotReady(number), countdown=delay)
    record("end", number)
    return number


@app.task(autoretry_for=(NotReady,), **SOON)
def hopeless(number: str) -> None:
    record("start", number, os.getpid())
    raise NotReady(number)


@app.task
def refuses(number: str, seconds: float = 0.0) -> None:
    """Fail, and state no retries."""
    record("start", number, os.getpid())
    if seconds:
        time.sleep(seconds)
    raise ValueError(number)


@app.task
def gated(number: str, gate: str, fail: str = "") -> str:
    """Wait until the file *gate* is there; then succeed, or fail once or always."""
    record("start", number, os.getpid())
    while not Path(gate).exists():
        time.sleep(0.02)
    if fail:
        raise NotReady(number)
    record("end", number)
    return number


@app.task(bind=True, autoretry_for=(NotReady,), **SOON)
def gated_once(self: Any, number: str, gate: str) -> str:
    """Wait until the file *gate* is there and fail; the retry succeeds."""
    record("start", number, os.getpid())
    if self.request.retries == 0:
        while not Path(gate).exists():
            time.sleep(0.02)
        raise NotReady(number)
    record("end", number)
    return number


def die(how: str) -> None:
    """End the process, or with "worker" all of the worker."""
    if how == "worker":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        import ctypes

        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(0)
    if how == "memory":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**28, 2**28))
        kept = []
        try:
            while True:
                kept.append(bytearray(2**20))
        except MemoryError:  # with overcommit the kernel does not raise: its OOM killer kills
            os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(autoretry_for=(Exception,), **SOON)
def poison(number: str, how: str) -> None:
    record("start", number, os.getpid())
    die(how)


@app.task
def poison_without_retries(number: str, how: str) -> None:
    record("start", number, os.getpid())
    die(how)


class DiesWhenDone(app.Task):  # type: ignore[name-defined]
    """Its process dies between the stored success and the word to the parent."""

    abstract = True

    def after_return(self, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=DiesWhenDone, autoretry_for=(Exception,), **SOON)
def dies_when_done(number: str) -> str:
    record("start", number, os.getpid())
    record("end", number)
    return number


class Hooked(app.Task):  # type: ignore[name-defined]
    """Its hooks tell where they run."""

    abstract = True

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record("hook", task_id, type(exc).__name__)


@app.task(base=Hooked)
def slow(number: str, seconds: float = 30.0) -> str:
    record("start", number, os.getpid())
    time.sleep(seconds)
    record("end", number)
    return number


@app.task(autoretry_for=(SoftTimeLimitExceeded,), **SOON)
def slow_again(number: str, seconds: float = 30.0) -> str:
    record("start", number, os.getpid())
    time.sleep(seconds)
    return number


@app.task(bind=True)
def exotic(self: Any, number: str, which: str, padding: str = "") -> Any:
    """End in what no framework expects."""
    record("start", number, os.getpid())
    return EXOTIC[which](self)


@app.task(bind=True, autoretry_for=(Exception,), **SOON)
def exotic_again(self: Any, number: str, which: str, padding: str = "") -> Any:
    record("start", number, os.getpid())
    return EXOTIC[which](self)


class RaisingHooks(app.Task):  # type: ignore[name-defined]
    """Every hook of the user's raises."""

    abstract = True

    def _raise(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a hook of the user's")

    on_failure = on_retry = after_return = before_start = on_success = _raise


@app.task(base=RaisingHooks)
def hooks_raise(number: str) -> None:
    record("start", number, os.getpid())
    raise ValueError(number)


@app.task(base=RaisingHooks, autoretry_for=(NotReady,), **SOON)
def hooks_raise_again(number: str) -> None:
    record("start", number, os.getpid())
    raise NotReady(number)


@app.task
def rejects(number: str, requeue: bool = False) -> None:
    record("start", number, os.getpid())
    raise Reject("not mine", requeue=requeue)


@app.task
def ignores(number: str) -> None:
    record("start", number, os.getpid())
    raise Ignore


@app.task
def total(numbers: list[str], number: str) -> str:
    """The body of a chord."""
    record("start", number)
    record("end", number)
    return number


@app.task
def told(request: Any, exc: Any, traceback: Any, number: str) -> None:
    """An error callback."""
    record("errback", number)


if not STOCK:
    from celery_resilience import Policy, on

    def _raises(*args: Any) -> Any:
        raise RuntimeError("a policy's function")

    @app.task(failure_policy=Policy(on(NotReady).retry(max_retries=2, delay=_raises), backoff=0.1))
    def policy_raises(number: str) -> None:
        record("start", number, os.getpid())
        raise NotReady(number)


if sys.version_info < (3, 11):
    import exceptiongroup  # noqa: F401


@app.task
def fails_until(number: str, gate: str) -> str:
    """Fail, and state no retries, until the file *gate* is there."""
    record("start", number, os.getpid())
    if not Path(gate).exists():
        raise ValueError(number)
    record("end", number)
    return number
