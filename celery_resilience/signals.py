"""What producers do to the messages they send: Celery's signal ``before_task_publish``."""

from __future__ import annotations

from typing import Any

from celery.signals import before_task_publish

__all__ = ["keep_expiring"]


def keep_expiring() -> None:
    """Let every task that this process sends reach a worker, expired or not; twice is once.

    Celery gives a task that expires RabbitMQ's own clock as well: the broker then drops it, with
    no worker there to tell anybody or to keep it. The ``expires`` field says the same and stays.
    """
    before_task_publish.connect(
        _take_the_clock_away, dispatch_uid="celery_resilience.keep_expiring"
    )


def _take_the_clock_away(headers: Any = None, properties: Any = None, **kwargs: Any) -> None:
    # A time to live that the sender has asked for himself is none of ours.
    if isinstance(headers, dict) and headers.get("expires") and isinstance(properties, dict):
        properties.pop("expiration", None)
