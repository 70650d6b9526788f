"""Celery tasks that are never lost.

A failing task is classified, retried through the broker with a jittered, growing delay, and
routed to a dead-letter queue when no retry can help. What is importable from here is public; what
lies in the packages below may change.
"""

import sys as _sys
import warnings as _warnings
from functools import partial as _partial
from importlib import import_module as _import_module
from importlib.machinery import ModuleSpec as _ModuleSpec
from importlib.util import find_spec as _find_spec
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING, Any

from celery.app.backends import BACKEND_ALIASES as _BACKENDS
from kombu.transport import TRANSPORT_ALIASES as _TRANSPORTS

from celery_resilience.classify import classify
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import (
    BrokerError,
    Discard,
    PermanentError,
    RateLimitedError,
    ResilienceError,
    Snooze,
    TransientError,
    UnacceptableResult,
)
from celery_resilience.install import install
from celery_resilience.messages.context import RetryContext
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.policy.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.policy.policy import Policy, on
from celery_resilience.task.base import ResilientTask

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters
    from celery_resilience.operate.dead_letters import DeadLetters
    from celery_resilience.operate.retries import Retries

__all__ = [
    "BrokerError",
    "DeadLetter",
    "DeadLetters",
    "Decision",
    "Discard",
    "Drop",
    "Failure",
    "Filters",
    "GiveUp",
    "Kind",
    "PermanentError",
    "Policy",
    "RateLimitedError",
    "Reason",
    "ResilienceError",
    "ResilientTask",
    "Retries",
    "RetryContext",
    "RetryLater",
    "Snooze",
    "TransientError",
    "UnacceptableResult",
    "Verdict",
    "classify",
    "install",
    "on",
]

# Named, not imported: that is for who uses them.
_TRANSPORTS.update(
    {
        "resilient-redis": "celery_resilience.transport:Transport",
        "resilient-rediss": "celery_resilience.transport:SecureTransport",
        "resilient-sentinel": "celery_resilience.transport:SentinelTransport",
    }
)
# One URL for messages and results means the same server.
_BACKENDS.update(
    {
        "resilient-redis": "celery_resilience.transport.backend:RedisBackend",
        "resilient-rediss": "celery_resilience.transport.backend:RedisBackend",
        "resilient-sentinel": "celery_resilience.transport.backend:SentinelBackend",
    }
)

if not all(map(_find_spec, ("redis", "packaging"))):  # what kombu's extra [redis] installs
    for _aliases, _name in ((_TRANSPORTS, "RedisTransport"), (_BACKENDS, "RedisBackend")):
        _aliases.update(
            {
                name: f"celery_resilience.brokers.missing:{_name}"
                for name in _aliases
                if name.endswith(("redis", "rediss", "sentinel"))
            }
        )

__version__ = "0.2.0"

#: What an operator's scripts use and a worker does not: it is imported when it is asked for.
_LAZY = {
    "DeadLetters": "operate.dead_letters",
    "Filters": "messages.filters",
    "Retries": "operate.retries",
}
#: Where that is now which a module of 0.1.0 had, if its docs, its users' code or stored errors may
#: name the path. The last three are packages now.
_MOVED = {
    "backoff": "policy.backoff",
    "brokers.delay": "brokers.rabbitmq.delay",
    "brokers.reach": "brokers.connect",
    "classify.headers": "classify.retry_after",
    "consumer": "worker.bootstep",
    "deadletters": "operate.dead_letters",
    "embedded": "testing.server",
    "filters": "messages.filters",
    "flags": "worker.flags",
    "ids": "operate.ids",
    "policy_file": "task.policy_file",
    "redact": "messages.redact",
    "request": "worker.request",
    "retries": "operate.retries",
    "brokers": "brokers.base",
    "policy": "policy.policy",
    "task": "task.base",
}


#: What it is called now, of that which had another name there.
_RENAMED = {
    "consumer.ResilientConsumer": "ResilienceStep",
    "retries.WaitingRetry": "ScheduledRetry",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_LAZY[name]}"), name)


def _moved(old: str, name: str) -> Any:
    """What the module *old* of 0.1.0 had by that *name*."""
    new = f"{__name__}.{_MOVED[old]}"
    was = f"{__name__}.{old}"
    now = _RENAMED.get(f"{old}.{name}", name)
    module = None if name[:2] == "__" != name else _import_module(new)
    if module is None or now not in module.__all__:
        raise AttributeError(f"module {was!r} has no attribute {name!r}")
    thing = getattr(module, now)
    if getattr(thing, "__module__", "") != was:  # stored errors are named by their old paths
        text = f"{was}.{name} has moved to {new}.{now}"
        _warnings.warn(text, DeprecationWarning, stacklevel=2)
    return thing


for _old in _MOVED:
    _name = f"{__name__}.{_old}"
    _module = _sys.modules.setdefault(_name, _ModuleType(_name))
    if _module.__spec__ is None:
        _module.__spec__ = _ModuleSpec(_name, None)
        setattr(_sys.modules[_name.rpartition(".")[0]], _old.rpartition(".")[2], _module)
    vars(_module)["__getattr__"] = _partial(_moved, _old)
