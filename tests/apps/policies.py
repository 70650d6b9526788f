"""The app of the tests about policies and switches, on the settings of the shop's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery_resilience import Discard, Failure, Policy, ResilientTask, Snooze, TransientError
from tests.apps.shop import Quick, app, record

app.conf.resilience_policies = {"remote-call": Policy(max_retries=2, backoff=0.05)}
app.conf.resilience_policies_by_name = {"*.by_pattern": "remote-call"}


@app.task
def by_pattern(name: str) -> None:
    record(name)
    raise TransientError(name)


@app.task(failure_policy="remote-call")
def by_reference(name: str) -> None:
    record(name)
    raise TransientError(name)


@app.task(base=Quick)
def overruled(name: str) -> None:
    record(name)
    raise TransientError(name)


@app.task(base=Quick, bind=True, retry_on_result=lambda result: result != "ready")
def polls(self: Any, name: str, ready_after: int) -> str:
    record(name)
    return "ready" if self.request.retries >= ready_after else "pending"


class Cached(Quick):
    """Has another answer when the service has none."""

    abstract = True

    def recover(self, failure: Failure) -> Any:
        if "nothing cached" in str(failure.exception):
            raise LookupError("nothing cached")
        return f"{failure.exception} after {failure.attempt}"


@app.task(base=Cached)
def cached(name: str) -> str:
    record(name)
    raise TransientError(name)


@app.task(base=Cached, bind=True, max_retries=1)
def asks_cached(self: Any, name: str) -> str:
    record(name)
    raise self.retry(exc=OSError(name), countdown=0.05)


@app.task
def shout(text: str) -> str:
    record("shout")
    return text.upper()


@app.task(base=Quick, bind=True)
def snoozes(self: Any, name: str) -> int:
    """Not ready twice, which uses up no retry; then fail once, which does."""
    record(name, self.request.retries)
    runs = Path(os.environ["RECORD"]).read_text().count(f"{name} ")
    if runs <= 2:
        raise Snooze(0.1)
    if runs == 3:
        raise TransientError("a real failure")
    return int(self.request.retries)


@app.task(base=Quick)
def discards(name: str) -> None:
    record(name)
    raise Discard("not wanted any more")


@app.task(
    base=ResilientTask,
    failure_policy=Policy(
        max_retries=None, backoff=0.05, factor=10_000, jitter="none", max_elapsed=60
    ),
)
def hurries(name: str) -> None:
    record(name)
    raise TransientError(name)


@app.task(autoretry_for=(ZeroDivisionError,), max_retries=2, default_retry_delay=0)
def autoretried(name: str) -> None:
    record(name)
    1 / 0  # noqa: B018


@app.task(bind=True, max_retries=1)
def asks_stock(self: Any, name: str) -> None:
    record(name)
    raise self.retry(countdown=0)


@app.task(base=Quick, bind=True)
def pages(self: Any, name: str, last: int) -> dict[str, Any]:
    """Do a page in every attempt, and go on in the next."""
    record(name)
    page = self.context.get("page", 0) + 1
    self.context["page"] = page
    if page < last:
        raise TransientError(f"{last - page} to go")
    below.delay(name)
    return dict(self.context)


@app.task(base=Quick, bind=True)
def below(self: Any, name: str) -> None:
    parent = self.context.parent
    record("below", len(self.context), "none" if parent is None else parent.get("page"))


@app.task(base=Quick, bind=True, max_retries=2)
def asks_anew(self: Any, name: str) -> str:
    """Ask for a retry with other arguments, which Celery publishes as a new message."""
    self.context["names"] = [*self.context.get("names", []), name]
    if len(self.context["names"]) < 3:
        # Not at once: Celery publishes the new message before it stores the state RETRY.
        raise self.retry(args=[name + "+"], countdown=0.2)
    return " ".join(self.context["names"])


@app.task(base=ResilientTask, failure_policy=Policy(max_retries=0), context_key="order", bind=True)
def keyed(self: Any, order: str, fails: bool = True) -> int:
    """Count the attempts for *order*, whatever message each of them came in."""
    self.context["tries"] = self.context.get("tries", 0) + 1
    tries = int(self.context["tries"])
    record(f"keyed-{order}", tries)
    if fails:
        raise TransientError(order)
    return tries
