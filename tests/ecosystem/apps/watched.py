"""What an error tracker is told of tasks that fail, each in its own way.

``TRACKER`` says which one; each event, or each transaction, is a JSON line in the file EVENTS.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery.exceptions import Reject

from celery_resilience import Discard, Policy, ResilientTask, TransientError
from tests.ecosystem.apps.base import make


def tell(**event: Any) -> None:
    with Path(os.environ["EVENTS"]).open("a") as file:
        file.write(json.dumps(event) + "\n")


def watch_with_sentry() -> None:
    """Its default integrations; what it would send is written down instead."""
    import sentry_sdk
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class ToFile(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            event = envelope.get_event()
            if event is not None:
                values = (event.get("exception") or {}).get("values") or [{}]
                tell(
                    task=(event.get("tags") or {}).get("celery_task_id"),
                    error=values[-1].get("type"),
                    logger=event.get("logger"),
                    line=(event.get("logentry") or {}).get("formatted"),
                )

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=ToFile)


def watch_with_new_relic() -> None:
    """Its developer mode, which sends nothing; what it would tell is written down."""
    os.environ["NEW_RELIC_LICENSE_KEY"] = "0" * 40
    os.environ["NEW_RELIC_DEVELOPER_MODE"] = "true"
    os.environ["NEW_RELIC_STARTUP_TIMEOUT"] = "10"
    import newrelic.agent
    from newrelic.core.stats_engine import StatsEngine

    newrelic.agent.initialize()
    record = StatsEngine.record_transaction

    def record_transaction(self: Any, transaction: Any) -> Any:
        tell(task=transaction.name, errors=[error.type for error in transaction.errors])
        return record(self, transaction)

    StatsEngine.record_transaction = record_transaction


{"sentry": watch_with_sentry, "new-relic": watch_with_new_relic}[os.environ["TRACKER"]]()
app = make("eco")


@app.task(bind=True, name="eco.by_policy", failure_policy=Policy(max_retries=2, backoff=0))
def by_policy(self: Any, failures: int) -> None:
    if self.request.retries < failures:
        raise TransientError("away")


@app.task(bind=True, name="eco.asks", max_retries=2, default_retry_delay=0)
def asks(self: Any, times: int) -> None:
    if self.request.retries < times:
        raise self.retry(exc=LookupError("asked"))


@app.task(name="eco.discarded")
def discarded() -> None:
    raise Discard("nobody wants it")


@app.task(name="eco.expected", throws=(ArithmeticError,))
def expected() -> None:
    raise ArithmeticError("as its owner says")


@app.task(name="eco.exits")
def exits() -> None:
    raise SystemExit(3)


@app.task(name="eco.rejects")
def rejects() -> None:
    raise Reject("not for me")


@app.task(name="eco.killed")
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="eco.slow", time_limit=1)
def slow() -> None:
    time.sleep(60)


class OfItsOwn(ResilientTask):
    """Wraps its call itself, as Flask's documentation says, and is wrapped by trackers there."""

    abstract = True
    failure_policy = Policy(max_retries=1, backoff=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


async def waits(self: Any, failures: int) -> None:
    by_policy.run.__wrapped__(self, failures)


is_green = os.environ["POOL"] == "gevent"
app.task(waits if not is_green else by_policy.run.__wrapped__, bind=True, name="eco.wrapped",
         base=OfItsOwn)  # fmt: skip
