"""Tasks whose bodies are ``async def``; every event of theirs is a line of the file RECORD."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from celery import Celery

from celery_resilience import Policy, ResilientTask, TransientError, install

app = Celery("asyncs", broker=os.environ["BROKER_URL"], backend=os.environ.get("BACKEND_URL"))
app.conf.update(task_default_queue="shop", broker_connection_retry_on_startup=True)
install(app)


def record(*words: Any) -> None:
    with open(os.environ["RECORD"], "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Quick(ResilientTask):
    abstract = True
    failure_policy = Policy(max_retries=2, backoff=0.05, jitter="none")


@app.task(base=Quick, bind=True)
async def flaky(self: Any, name: str, failures: int) -> str:
    """Fail *failures* times, then succeed; its request is its own, whatever runs beside it."""
    record(name, self.request.retries)
    await asyncio.gather(asyncio.sleep(0.05), asyncio.sleep(0.01))
    if self.request.retries < failures:
        raise TransientError("not yet")
    return f"{name} {self.request.id}"


@app.task(base=Quick)
async def times_out(name: str) -> None:
    record(name)
    await asyncio.wait_for(asyncio.sleep(5), 0.01)


@app.task(bind=True, max_retries=1)
async def asks(self: Any, name: str) -> None:
    """Ask for a retry; installed, without a base of ours."""
    record(name, self.request.retries)
    await asyncio.sleep(0)
    raise self.retry(countdown=0)


@app.task(failure_policy=Policy(max_retries=0))
async def waits(name: str) -> None:
    """Wait in the loop until it is cancelled."""
    record(name)
    try:
        await asyncio.gather(asyncio.sleep(30), asyncio.sleep(30))
    except asyncio.CancelledError:
        record(name, "cancelled")
        raise
    finally:
        await asyncio.sleep(0.01)
        record(name, "cleaned up")


@app.task
async def gives_what_it_has(name: str) -> str:
    """Answer the soft time limit with a result."""
    record(name)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        return "half of it"
    return "all of it"


@app.task(failure_policy=Policy(max_retries=0))
async def blocks(name: str) -> None:
    """Never let the loop have its turn."""
    record(name)
    try:
        time.sleep(30)
    except BaseException as exc:
        record(name, type(exc).__name__)
        raise
