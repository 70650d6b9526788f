"""The ``resilience_*`` settings of an app, read once and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from celery.app.utils import Settings as _CelerySettings
from celery.exceptions import ImproperlyConfigured

from celery_resilience.brokers.base import LONGEST_NAME, BrokerOptions
from celery_resilience.errors import did_you_mean, nearest
from celery_resilience.policy.policy import Policy

__all__ = [
    "PREFIX",
    "Settings",
    "dead_letter_queues",
    "is_stated",
    "queue_name",
    "refuse_long_names",
]

# The stubs do not know what it takes.
_Conf: Any = _CelerySettings

PREFIX = "resilience_"
#: Prefixes that are likely to be mistaken for it.
_WORDS = ("resilience", "resilient", "resiliency")

_NOT_GIVEN = object()

Redaction = tuple["str | Callable[[str], str]", ...]


@dataclass(frozen=True)
class Settings(BrokerOptions):
    """Every setting, with its default; each is written ``resilience_<name>`` in the app's conf."""

    #: How often a message may crash its process before it becomes a dead letter.
    max_worker_losses: int = 3
    #: The app's version, kept in every letter.
    app_version: str = ""
    #: Policies to share, each under the name that tasks, patterns and the operator's file use.
    policies: Mapping[str, Policy] = field(default_factory=dict)
    #: Patterns of task names (``"*remote_call*"``), each with its policy or the name of one; the
    #: first that matches decides about tasks that have no ``failure_policy`` of their own.
    policies_by_name: Mapping[str, Policy | str] = field(default_factory=dict)
    #: The path of the operator's policy file (TOML), which overrules the code; None: none.
    failure_policies: str | None = None
    #: Whether a task whose ``expires`` has passed becomes a dead letter instead of being dropped.
    dead_letter_expired: bool = False
    #: The transport that workers take from Redis with: ``"auto"``: our own, kombu's where that is
    #: impossible; ``"own"``: our own, or the worker does not start; ``"kombu"``: kombu's.
    redis_transport: str = "auto"
    #: False: stock Celery decides about failures, and nothing becomes a dead letter.
    enabled: bool = True
    #: Where RabbitMQ's queue of a task has a dead-letter exchange of its own: ``"exchange"``: what
    #: the task rejects goes there; ``"letter"``: it is a dead letter. A list names queues that have
    #: one by a policy of RabbitMQ's, beside those that ``task_queues`` shows.
    reject_on_dlx: str | Sequence[str] = "exchange"
    #: Values to mask in all output: names of arguments, and functions from text to text.
    redact: Redaction = ()
    #: Whether values named like a credential (``password``, ``api_key``, ``access_token``,
    #: ``Authorization``, ``cookie`` ...) are masked too, and the password in a URL.
    redact_credentials: bool = True

    @classmethod
    def of(cls, app: Any, **flags: Any) -> Settings:
        """The settings of a Celery *app*; *flags* that are not None override them.

        Raises ImproperlyConfigured for a setting that does not exist, with what was meant, and
        for a value that can't be used.
        """
        _refuse_misspelt_prefix(app)
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key in _keys(app):
            name, value = key[len(PREFIX) :], app.conf.get(key, _NOT_GIVEN)
            if value is _NOT_GIVEN:
                continue  # of the same name, but not in the app's namespace
            if name not in known:
                meant = did_you_mean(name, known, shown=PREFIX.__add__) or "."
                raise ImproperlyConfigured(
                    f"unknown setting {key}{meant} "
                    f"Known settings: {', '.join(PREFIX + n for n in sorted(known))}"
                )
            values[name] = value
        if _is_quorum(app):
            values.setdefault("dead_letter_queue_arguments", {"x-queue-type": "quorum"})
        values.update({name: value for name, value in flags.items() if value is not None})
        return cls(**{name: _checked(name, value) for name, value in values.items()})


def _is_quorum(app: Any) -> bool:
    """Whether *app* wants its queues on several of RabbitMQ's nodes: then letters lie there too."""
    if app.conf.get("task_default_queue_type") == "quorum":
        return True
    queues = app.conf.get("task_queues") or ()
    found = [
        (getattr(queue, "queue_arguments", None) or {}).get("x-queue-type")
        for queue in (queues.values() if isinstance(queues, Mapping) else queues)
    ]
    return bool(found) and set(found) == {"quorum"}


def _keys(app: Any) -> list[str]:
    """The ``resilience_*`` keys that are set, whatever namespace they were read with."""
    namespace = (getattr(app, "namespace", None) or "").lower()
    prefix = f"{namespace}_{PREFIX}" if namespace else PREFIX
    found = set()
    for key in app.conf:
        name = str(key).lower()
        if name.startswith(prefix):
            name = name[len(prefix) - len(PREFIX) :]
        if name.startswith(PREFIX):
            found.add(name)
    return sorted(found)


def is_stated(app: Any, name: str) -> bool:
    """Whether the setting *name* of Celery's is written; its default says nothing."""
    conf = app.conf
    conf.get(name)  # a configuration that waits is read now
    stated = _Conf({}, conf.maps[:-1], conf._keys, conf.prefix)
    return stated.get(name, _NOT_GIVEN) is not _NOT_GIVEN  # "in": no old names before Celery 5.7


def _refuse_misspelt_prefix(app: Any) -> None:
    """Celery takes any word for a setting and says nothing."""
    namespace = (getattr(app, "namespace", None) or "").lower()
    start = f"{namespace}_" if namespace else ""
    known = [PREFIX + f.name for f in fields(Settings)]
    for key in app.conf:
        name = str(key).lower()
        if not name.startswith(start):
            continue
        name = name[len(start) :]
        bare = name.removeprefix("celery_")
        word = bare.partition("_")[0]
        if name.startswith(PREFIX) or nearest(word, _WORDS, cutoff=0.8) is None:
            continue
        near = nearest(bare, known, cutoff=0.8)
        if near is not None:
            raise ImproperlyConfigured(f"unknown setting {key}; did you mean {start}{near}?")


def _checked(name: str, value: Any) -> Any:
    def refuse(wanted: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"{PREFIX}{name} takes {wanted}, got {value!r}")

    if name == "dead_letter_queue":
        return queue_name(value, f"{PREFIX}{name}")
    if name == "dead_letter_queue_arguments":
        if not isinstance(value, Mapping):
            raise refuse("a mapping of queue arguments")
        return dict(value)
    if name == "max_worker_losses":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise refuse("a whole number of at least 1")
        return value
    if name in ("dead_letter_expired", "enabled", "redact_credentials"):
        if not isinstance(value, bool):
            raise refuse("True or False")
        return value
    if name == "hold_retries":
        if value not in ("auto", "worker"):
            raise refuse('"auto" or "worker"')
        return value
    if name == "redis_transport":
        if value not in ("auto", "own", "kombu"):
            raise refuse('"auto", "own" or "kombu"')
        return value
    if name == "reject_on_dlx":
        if isinstance(value, str) and value in ("exchange", "letter"):
            return value
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise refuse('"exchange", "letter" or a list of queues')
        names = tuple(value)
        if not all(isinstance(each, str) for each in names):
            raise refuse('"exchange", "letter" or a list of queues')
        return names
    if name == "failure_policies":
        if value is not None and (not isinstance(value, (str, PathLike)) or not str(value)):
            raise refuse("the path of a file")
        return None if value is None else str(value)
    if name in ("policies", "policies_by_name"):
        return _checked_policies(name, value)
    if name == "app_version":
        return str(value)
    if name == "redact":
        items = (value,) if isinstance(value, str) or callable(value) else tuple(value)
        if not all(isinstance(item, str) or callable(item) for item in items):
            raise refuse("names of keyword arguments and functions from text to text")
        return items
    raise AssertionError(name)


def _checked_policies(name: str, value: Any) -> Mapping[str, Any]:
    by_name = name == "policies_by_name"
    keys = "patterns of task names" if by_name else "names"
    wanted = "a Policy or the name of one" if by_name else "a Policy"
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(
            f"{PREFIX}{name} takes a dict from {keys} to policies, got {value!r}"
        )
    for key, policy in value.items():
        if not isinstance(key, str) or not key:
            raise ImproperlyConfigured(f"{PREFIX}{name} takes {keys} as its keys, got {key!r}")
        if not isinstance(policy, (Policy, str) if by_name else Policy):
            raise ImproperlyConfigured(f"{PREFIX}{name}[{key!r}] takes {wanted}, got {policy!r}")
    return dict(value)


def queue_name(value: object, where: str) -> str:
    """*value* if it can name a dead-letter queue; raises ImproperlyConfigured, naming *where*."""
    if not isinstance(value, str) or not value.strip():
        raise ImproperlyConfigured(f"{where} takes the name of a queue, got {value!r}")
    rest = value.replace("{queue}", "")
    if "{" in rest or "}" in rest:
        raise ImproperlyConfigured(
            f"{where}: only {{queue}} is filled in, as in 'dead.{{queue}}'; got {value!r}"
        )
    return value


def refuse_long_names(app: Any, settings: Settings, queues: Iterable[str]) -> None:
    """Raise ImproperlyConfigured for a dead-letter queue of *queues* that RabbitMQ can't name."""
    for name in sorted(dead_letter_queues(app, settings, queues)):
        if len(name.encode()) > LONGEST_NAME:
            raise ImproperlyConfigured(
                f"{name} can't name a dead-letter queue: RabbitMQ's names have at most "
                f"{LONGEST_NAME} bytes, this one {len(name.encode())}. Choose a shorter "
                f"{PREFIX}dead_letter_queue, or one without {{queue}}"
            )


def dead_letter_queues(
    app: Any, settings: Settings, queues: Iterable[str], *, rules: bool = True
) -> set[str]:
    """Every dead-letter queue that the setting, a task or (*rules*) a rule names; ``{queue}`` is
    filled in with each of *queues*."""
    named: set[str] = {settings.dead_letter_queue}
    for task in app.tasks.values():
        own = getattr(task, "dead_letter_queue", None)
        if isinstance(own, str):
            named.add(own)
        policy = getattr(task, "policy_in_force", None) if rules else None
        named.update(rule.queue for rule in getattr(policy, "rules", ()) if rule.queue)
    return {
        name.replace("{queue}", queue) if "{queue}" in name else name
        for name in named
        for queue in (queues or [""])
    }
