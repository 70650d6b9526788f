"""Bodies that change their own message, and ask for another attempt with it."""

from __future__ import annotations

from typing import Any

from celery_resilience import Policy, TransientError
from tests.apps.shop import app, record

app.conf.accept_content = ["json", "pickle"]
SOON = Policy(max_retries=9, backoff=0)


@app.task(bind=True, name="changing.list", max_retries=9, default_retry_delay=0)
def deliver(self: Any, name: str, items: list[str]) -> str:
    """Takes what is done off the list."""
    while items:
        record(f"{name}:{items.pop(0)}")
        if items:
            raise self.retry()
    return "all"


@app.task(bind=True, name="changing.keywords", failure_policy=SOON)
def turn_pages(self: Any, name: str, page: int = 0) -> str:
    """Its policy retries it; it looks at the next page then."""
    record(f"{name}:{page}")
    if page < 3:
        self.request.kwargs["page"] = page + 1
        raise TransientError("more")
    return "all"


@app.task(bind=True, name="changing.retries", max_retries=1, default_retry_delay=0)
def patient(self: Any, name: str, left: list[int]) -> str:
    """Progress is no failure: it counts anew."""
    record(name)
    if left:
        left.pop()
        self.request.retries -= 1
        raise self.retry()
    return "all"


@app.task(bind=True, name="changing.chain", failure_policy=SOON)
def break_off(self: Any, name: str) -> str:
    """It takes off what is to follow."""
    record(name)
    if self.request.chain or self.request.callbacks:  # these are protocol 1's way
        self.request.chain = self.request.callbacks = None
        raise TransientError("alone")
    return "alone"


@app.task(bind=True, name="changing.unsendable", failure_policy=SOON)
def unsendable(self: Any, name: str, items: list[Any]) -> str:
    record(f"{name}:{len(items)}")
    items.append(object())
    if not self.request.retries:
        raise TransientError("once")
    return "all"


@app.task(name="changing.follows")
def follows(result: Any, name: str) -> None:
    record(name)


@app.task(bind=True, name="changing.asks", max_retries=3, default_retry_delay=0)
def asks(self: Any, name: str, tries: int) -> None:
    """Asks with new arguments each time, so that each attempt is a new message."""
    record(name)
    raise self.retry(args=(name, tries + 1), exc=KeyError(tries))
