"""``celery resilience check FILE``: check a policy file before a worker reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from celery_resilience.settings import Settings
from celery_resilience.task.policies import Policies
from celery_resilience.task.policy_file import load

__all__ = ["as_text", "check"]


def check(app: Any, path: str) -> dict[str, Any]:
    """What the file at *path* says about *app*'s tasks.

    Raises ImproperlyConfigured, with the line and the fix, for anything that a worker would
    refuse.
    """
    settings = Settings.of(app)
    policies = Policies(replace(settings, failure_policies=path))
    shared = {name: policy.replace(name=name) for name, policy in settings.policies.items()}
    file = load(path, shared)
    # Celery's own are not decided about.
    free = {name for name in app.tasks if not name.startswith("celery.")}
    patterns = []
    for pattern, policy in file.tasks.items():
        matched = sorted(name for name in free if fnmatchcase(name, pattern))
        free.difference_update(matched)  # the first that matches decides
        patterns.append({"pattern": pattern, "policy": policy, "tasks": matched})
    return {
        "file": path,
        "policies": sorted(file.policies),
        "shared": sorted(set(policies.named) - set(file.policies)),
        "patterns": patterns,
    }


def as_text(told: dict[str, Any], with_tasks: bool) -> Iterator[str]:
    """The same for a person; *with_tasks*: the app's tasks are known."""
    names = ", ".join(told["policies"]) or "none"
    yield f"{told['file']} is valid. Policies: {names}."
    for one in told["patterns"]:
        tasks = ", ".join(one["tasks"]) or "no task of this app"
        yield f"  {one['pattern']} -> {one['policy']}" + (f": {tasks}" if with_tasks else "")
