"""One line that makes an app lose nothing."""

from __future__ import annotations

from typing import Any

from celery_resilience.consumer import watch
from celery_resilience.flags import add_flags

__all__ = ["install"]


def install(app: Any) -> None:
    """Make *app*'s workers settle what would be lost, and teach them our flags.

    Messages that no worker can make a task of become dead letters, whatever the tasks' base is;
    tasks whose base is :class:`~celery_resilience.ResilientTask` are retried and dead-lettered.
    Call it where the app is made, before a worker starts. Calling it again changes nothing.
    """
    add_flags(app)
    watch(app)
