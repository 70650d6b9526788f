"""What can be read off a Celery app: its tasks, its queues, the parameters of its tasks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.exceptions import ImproperlyConfigured

from celery_resilience.settings import Settings, dead_letter_queues
from celery_resilience.task.policies import policies_of

__all__ = ["known_queues", "letter_queues", "load_tasks", "parameters_of"]

logger = logging.getLogger("celery_resilience")


def load_tasks(app: Any) -> None:
    """Import every module that has tasks of *app*; one that can't be imported is logged."""
    try:
        app.loader.import_default_modules()
    except Exception as exc:
        logger.warning(
            "some tasks could not be imported (%s: %s): queues that only they name are missing",
            type(exc).__name__, exc,
        )  # fmt: skip


def known_queues(app: Any) -> set[str]:
    """The queues that *app* can be seen to use: declared, routed to, or named by a task."""
    names = set(app.amqp.queues)
    routes = app.conf.task_routes
    for route in routes.values() if isinstance(routes, Mapping) else ():
        names.add(route.get("queue") if isinstance(route, Mapping) else None)
    names.update(getattr(task, "queue", None) for task in app.tasks.values())
    return {name for name in map(_name, names) if name}


def _name(queue: object) -> str:
    name = getattr(queue, "name", queue)
    return name if isinstance(name, str) else ""


def parameters_of(app: Any) -> Callable[[str], Sequence[str]]:
    """Tells the names of the positional parameters of *app*'s tasks, for the filters."""
    known: dict[str, Sequence[str]] = {}

    def parameters(name: str) -> Sequence[str]:
        if name not in known:
            load_tasks(app)
            try:
                known[name] = tuple(inspect.signature(app.tasks[name].run).parameters)
            except (KeyError, TypeError, ValueError):
                known[name] = ()
        return known[name]

    return parameters


def letter_queues(app: Any, settings: Settings, queues: Sequence[str]) -> tuple[set[str], str]:
    """Every dead-letter queue that the setting, a task or a rule names, and what kept us from
    knowing them all: looking at letters does not depend on policies that can be used."""
    try:
        policies_of(app)
        return dead_letter_queues(app, settings, queues), ""
    except ImproperlyConfigured as exc:
        return dead_letter_queues(app, settings, queues, rules=False), str(exc)
