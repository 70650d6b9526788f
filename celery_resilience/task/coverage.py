"""Which tasks' failures are settled here, and why those of others are not."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from celery.app.task import Task

from celery_resilience.settings import is_stated
from celery_resilience.task.base import ResilientTask

__all__ = ["INSTALLED", "is_meant", "warn_of_early_acks", "warn_of_uncovered", "why_uncovered"]

logger = logging.getLogger("celery_resilience")

#: Where an app says with what ``install`` was called: (classify, patterns of *only* or None).
INSTALLED = "_resilience_installed"

#: Celery's own tasks whose messages carry the app's arguments and run the app's code, or carry
#: its results. The others are left alone: ``celery.chord_unlock`` polls, repeats itself for ever
#: and tells the chord when it gives up; ``celery.backend_cleanup`` is sent again by beat;
#: ``celery.group``, ``celery.chain`` and ``celery.chord`` are no longer sent.
_CARRIERS = frozenset({"celery.map", "celery.starmap", "celery.chunks", "celery.accumulate"})
#: So many names are told.
_FEW = 5


def is_meant(name: str, patterns: Iterable[str] | None) -> bool:
    """Whether ``install`` with these *patterns* covers the task *name*."""
    if name.startswith("celery.") and name not in _CARRIERS:
        return False
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def why_uncovered(task: Any) -> str | None:
    """Why the failures of *task* are not settled here; None: they are."""
    if not isinstance(task, ResilientTask):
        return (
            "it is a stock Celery task. Celery retries it only where its own options or its body "
            "ask for that, and when it fails for good its message is gone"
        )
    if task.Strategy != Task.Strategy:
        theirs = task.Strategy
        theirs = theirs if isinstance(theirs, str) else getattr(theirs, "__qualname__", theirs)
        return (
            f"its Strategy ({theirs}) takes its messages from the worker and runs them in a way "
            "of its own: what fails there is neither retried nor kept as a dead letter"
        )
    return None


def warn_of_uncovered(app: Any) -> None:
    """Tell, when a worker of *app* starts, which tasks seem to be covered and are not."""
    _, patterns = app.__dict__.get(INSTALLED, (None, ()))
    found = defaultdict(list)
    for name, task in sorted(app.tasks.items()):
        if isinstance(task, ResilientTask) or is_meant(name, patterns):
            why = why_uncovered(task)
            if why is not None:
                found[why].append(name)
    for why, names in found.items():
        more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
        logger.warning("not covered: %s%s: %s", ", ".join(names[:_FEW]), more, why)


def warn_of_early_acks(app: Any) -> None:
    """Tell, when a worker of *app* starts, that one setting lets it lose what it runs.

    A task that says so itself is meant; a setting may be older than our line.
    """
    if app.conf.task_acks_late or not is_stated(app, "task_acks_late"):
        return
    ours = [task for task in app.tasks.values() if isinstance(task, ResilientTask)]
    early = sum(1 for task in ours if not task.acks_late)
    if early:
        logger.warning(
            "task_acks_late is False in the app's settings: %d of %d covered tasks are "
            "acknowledged before they run, and what runs when this worker dies is lost. To keep "
            "it, take the setting out, or give the task acks_late=True",
            early, len(ours),
        )  # fmt: skip
