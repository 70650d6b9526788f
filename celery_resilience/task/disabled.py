"""``--no-resilience``: stock Celery decides about failures, and nothing else does.

Nothing is classified, no policy is asked and nothing becomes a dead letter. What the tasks state
to Celery itself (``autoretry_for`` and its kin, ``self.retry``, ``acks_late``) goes on to hold,
``acks_late = True`` of our base class among it.
"""

from __future__ import annotations

from typing import Any

from celery.app.autoretry import add_autoretry_behaviour

__all__ = ["OrigRun", "disable", "is_disabled"]

_KEY = "_resilience_off"


def disable(app: Any) -> None:
    """Leave the decisions about *app*'s tasks to Celery, for the rest of this process."""
    app.__dict__[_KEY] = True
    for task in app.tasks.values():
        if isinstance(getattr(type(task), "_orig_run", None), OrigRun):
            add_autoretry_behaviour(task)


def is_disabled(app: Any) -> bool:
    """Whether stock Celery decides about *app*'s tasks."""
    return _KEY in app.__dict__


class OrigRun:
    """The ``_orig_run`` of our tasks.

    Celery's own autoretry keeps the undecorated body under this name and leaves a task alone that
    already has one: its options are read by the policy instead. Switched off there is none, and
    what Celery then puts there is found before this.
    """

    def __get__(self, task: Any, owner: type) -> Any:
        if task is None:
            return self
        if is_disabled(task.app):
            raise AttributeError("_orig_run")
        return task.run
