"""Which policy decides about a task's failures, of all that were given for it.

The first of these that says something: the operator's file, the task's own ``failure_policy``,
the pattern in ``resilience_policies_by_name``, Celery's own options, the classifier. A policy may
be given by its name wherever one can be given: names are those of ``resilience_policies`` and of
the file, whose word for a name is the last one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from celery.exceptions import ImproperlyConfigured

from celery_resilience.errors import did_you_mean
from celery_resilience.policy.policy import Policy
from celery_resilience.settings import Settings
from celery_resilience.task.policy_file import PolicyFile, load

__all__ = ["Chosen", "Policies", "apply_policies", "policies_of"]

logger = logging.getLogger("celery_resilience")

_KEY = "_resilience_policies"
_BY_NAME = "resilience_policies_by_name"
_WILD = frozenset("*?[")


@dataclass(frozen=True)
class Chosen:
    """The policy that decides about a task."""

    policy: Policy
    #: Who has given it, for a person; empty where it follows from the task's own options.
    by: str = ""


class Policies:
    """The policies of one app, and which task each is for."""

    def __init__(self, settings: Settings) -> None:
        shared = {name: policy.replace(name=name) for name, policy in settings.policies.items()}
        path = settings.failure_policies
        self._file = load(path, shared) if path else PolicyFile()
        #: Every policy that can be named.
        self.named: Mapping[str, Policy] = {**shared, **self._file.policies}
        self._by_name = {
            pattern: self._resolved(policy, _setting(pattern))
            for pattern, policy in settings.policies_by_name.items()
        }
        _refuse_shadowed(self._by_name, _setting)
        _refuse_shadowed(self._file.tasks, self._line)
        self._chosen: dict[str, Chosen] = {}

    def of(self, task: Any) -> Chosen:
        """The policy that decides about *task*, one of ours.

        Raises ImproperlyConfigured if the task names a policy that does not exist.
        """
        chosen = self._chosen.get(task.name)
        if chosen is None:
            chosen = self._chosen[task.name] = self._choose(task)
        return chosen

    def _choose(self, task: Any) -> Chosen:
        pattern = _first(self._file.tasks, task.name)
        if pattern is not None:
            name = self._file.tasks[pattern]
            by = f"the policy {name!r} of {self._file.path}, for {pattern!r}"
            return Chosen(self.named[name], by)
        own = task.failure_policy
        if own is not None:
            policy = self._resolved(own, f"{task.name}: failure_policy")
            by = "its failure_policy" + (f" {policy.name!r}" if policy.name else "")
            overruled = isinstance(own, str) and own in self._file.policies
            return Chosen(policy, f"{by} of {self._file.path}" if overruled else by)
        pattern = _first(self._by_name, task.name)
        if pattern is not None:
            return Chosen(self._by_name[pattern], _setting(pattern))
        return Chosen(task.policy_by_options)

    def check(self, tasks: Iterable[Any]) -> None:
        """Refuse a name that one of an app's *tasks* uses and no policy has; warn of patterns that
        are for no task of ours."""
        ours = [task for task in tasks if hasattr(task, "policy_by_options")]
        for task in ours:
            self.of(task)
        names = [task.name for task in ours]
        for patterns, place in ((self._by_name, _setting), (self._file.tasks, self._line)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    meant = did_you_mean(pattern, names)
                    logger.warning("%s matches no task of this app%s", place(pattern), meant)

    def _resolved(self, policy: Policy | str, where: str) -> Policy:
        if isinstance(policy, Policy):
            return policy
        if policy in self.named:
            return self.named[policy]
        raise ImproperlyConfigured(
            f"{where} names the policy {policy!r}, which neither resilience_policies nor a file of "
            f"policies has{did_you_mean(policy, self.named)}"
        )

    def _line(self, pattern: str) -> str:
        return f"{self._file.place('tasks', pattern)}: {pattern!r}"


def apply_policies(app: Any, settings: Settings) -> Policies:
    """Let the policies that *settings* name decide about *app*'s tasks from now on.

    Raises ImproperlyConfigured for a policy that can't be used; each task's own is checked by
    :meth:`Policies.check`.
    """
    policies = app.__dict__[_KEY] = Policies(settings)
    return policies


def policies_of(app: Any) -> Policies:
    """The policies of *app*: those of its worker, else those of its settings, read at first use."""
    policies = app.__dict__.get(_KEY)
    return policies if isinstance(policies, Policies) else apply_policies(app, Settings.of(app))


def _setting(pattern: str) -> str:
    return f"{_BY_NAME}[{pattern!r}]"


def _first(patterns: Iterable[str], name: str) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _refuse_shadowed(patterns: Iterable[str], place: Callable[[str], str]) -> None:
    """Refuse the plain name of a task that stands behind a pattern which has it already."""
    before: list[str] = []
    for pattern in patterns:
        first = _first(before, pattern)
        if first is not None and not _WILD & set(pattern):
            raise ImproperlyConfigured(
                f"{place(pattern)} can never match: {first!r} comes first and covers it; put the "
                "name before the pattern"
            )
        before.append(pattern)
