"""Tasks that are queued once: celery-once's and celery-singleton's."""

from __future__ import annotations

import os
from typing import Any

from tests.ecosystem.apps.base import make, note

app = make("eco")
PACKAGE = os.environ["LOCKS"]

if PACKAGE == "celery_once":
    from celery_once import QueueOnce

    base: Any = QueueOnce
    app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        "settings": {"url": os.environ["REDIS_URL"], "default_timeout": 60},
    }
else:
    from celery_singleton import Singleton

    base = Singleton
    app.conf.singleton_backend_url = os.environ["REDIS_URL"]


@app.task(
    bind=True, base=base, name="eco.locked", autoretry_for=(ConnectionError,), max_retries=3,
    default_retry_delay=0, retry_backoff=False,
)  # fmt: skip
def locked(self: Any, failures: int) -> str:
    note(f"locked {failures} {self.request.retries}")
    if self.request.retries < failures:
        raise ConnectionError("not yet")
    return "done"
