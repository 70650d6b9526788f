"""Celery tasks that are never lost.

A failing task is classified, retried through the broker with a jittered, growing delay, and
routed to a dead-letter queue when no retry can help.
"""

from importlib.util import find_spec as _find_spec

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

__all__ = [
    "BrokerError",
    "DeadLetter",
    "Decision",
    "Discard",
    "Drop",
    "Failure",
    "GiveUp",
    "Kind",
    "PermanentError",
    "Policy",
    "RateLimitedError",
    "Reason",
    "ResilienceError",
    "ResilientTask",
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
# Whoever has one URL for messages and results means the same server by it.
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
                name: f"celery_resilience.transport.missing:{_name}"
                for name in _aliases
                if name.endswith(("redis", "rediss", "sentinel"))
            }
        )

__version__ = "0.1.0"
