"""A small shop: ``celery -A examples.shop worker``; BROKER_URL and BACKEND_URL may be set."""

from __future__ import annotations

import os
import random

from celery import Celery

from celery_resilience import PermanentError, ResilientTask, TransientError, install

app = Celery(
    "shop",
    broker=os.environ.get("BROKER_URL", "redis://"),
    backend=os.environ.get("BACKEND_URL", "redis://"),
)
install(app)


@app.task(base=ResilientTask)
def charge(customer: int) -> str:
    """Charge a customer through a bank that is often busy and does not know everybody."""
    if customer < 0:
        raise PermanentError(f"no such customer: {customer}")
    if random.random() < 0.5:
        raise TransientError("the bank is busy", retry_after=1)
    return f"customer {customer} was charged"
