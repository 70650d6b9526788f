"""What Celery's own retry options of a task mean, as a policy.

Celery's names keep Celery's meaning: the options decide alone, so what they do not name is given
up, and ``max_elapsed`` does not bind. Differences on purpose:

- fractions of a second are honoured; Celery rounds ``retry_backoff=0.5`` up to 1 s and draws
  whole seconds only;
- a server's ``Retry-After`` is a floor here too;
- a wrong type or a misspelt name raises when the task is defined, not in the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from celery_resilience.errors import did_you_mean
from celery_resilience.policy.backoff import checked_number, checked_retries
from celery_resilience.policy.policy import Policy
from celery_resilience.policy.rules import is_control_flow_class, on

__all__ = ["policy_from_celery_options"]

#: What ``retry_kwargs`` may hold besides: these are about what is published, not about when.
_OTHER_RETRY_KWARGS = (
    *("args", "kwargs", "exc", "throw", "eta"),
    *("queue", "exchange", "routing_key", "priority", "expires", "time_limit", "soft_time_limit"),
    *("serializer", "compression", "connection", "producer", "publisher", "headers", "shadow"),
    *("retry", "retry_policy", "link", "link_error", "ignore_result", "add_to_parent"),
    *("task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "chain", "reply_to"),
    *("delivery_mode", "mandatory", "correlation_id", "replaced_task_nesting", "declare"),
    *("stamped_headers", "origin", "argsrepr", "kwargsrepr"),
)
_RETRY_KWARGS = ("max_retries", "countdown", *_OTHER_RETRY_KWARGS)


def policy_from_celery_options(
    *,
    where: str,
    autoretry_for: Any,
    dont_autoretry_for: Any,
    max_retries: Any,
    retry_backoff: Any,
    retry_backoff_max: Any,
    retry_jitter: Any,
    default_retry_delay: Any,
    retry_kwargs: Any,
) -> Policy | None:
    """The policy that the options of task *where* add up to; None if they ask for no retry.

    The options are checked either way. Retry *n*, which Celery counts from 0, has the ceiling
    ``retry_backoff * 2**n`` up to ``retry_backoff_max``; without ``retry_backoff`` every retry
    comes after the ``countdown`` of ``retry_kwargs``, or ``default_retry_delay``, on the dot.
    ``dont_autoretry_for`` wins over ``autoretry_for``.
    """
    retried = _exception_classes(where, "autoretry_for", autoretry_for)
    never_retried = _exception_classes(where, "dont_autoretry_for", dont_autoretry_for)
    for cls in retried:
        if is_control_flow_class(cls):
            raise TypeError(
                f"{where}: autoretry_for takes exceptions that are failures, "
                f"got {cls.__name__}, which is control flow and never retried"
            )
    factor = _retry_backoff(where, retry_backoff)
    longest = _number(where, "retry_backoff_max", retry_backoff_max)
    if retry_jitter not in (True, False):
        raise TypeError(
            f"{where}: retry_jitter takes True or False, got {retry_jitter!r}; "
            f"a failure_policy can have jitter as a proportion"
        )
    limit = _max_retries(where, "max_retries", max_retries)
    of_retry = _retry_kwargs(where, retry_kwargs)
    own_limit = _max_retries(where, "max_retries in retry_kwargs", of_retry.get("max_retries"))
    if own_limit is not None:  # None is Celery's "use the default" here, not "no limit"
        limit = own_limit
    fixed = _countdown(where, default_retry_delay, of_retry.get("countdown"))
    if not retried:
        return None
    rule = replace(
        on(*retried).retry(max_retries=limit),
        except_for=never_retried,
        label="Celery option autoretry_for",
    )
    if factor is None:
        return Policy(
            rule,
            max_retries=limit,
            backoff=fixed,
            backoff_max=fixed,
            shape="fixed",
            jitter="none",
            max_elapsed=None,
            name=where,
            unmatched="give_up",
        )
    return Policy(
        rule,
        max_retries=limit,
        backoff=min(factor, longest),
        factor=2,
        backoff_max=longest,
        shape="exponential",
        jitter="full" if retry_jitter else "none",
        max_elapsed=None,
        name=where,
        unmatched="give_up",
    )


def _exception_classes(where: str, option: str, value: Any) -> tuple[type[BaseException], ...]:
    if value is None:
        return ()
    if isinstance(value, type) and issubclass(value, BaseException):
        raise TypeError(
            f"{where}: {option} takes exception classes in a tuple, got {value.__name__}: "
            f"write ({value.__name__},)"
        )
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{where}: {option} takes exception classes, got {value!r}")
    classes = tuple(value)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"{where}: {option} takes exception classes, got {cls!r}")
    return classes


def _number(where: str, option: str, value: Any) -> float:
    return checked_number(f"{where}: {option}", value)


def _retry_backoff(where: str, value: Any) -> float | None:
    """Seconds, or None for no backoff, which Celery says as False or 0."""
    if isinstance(value, bool):
        return 1.0 if value else None
    if not isinstance(value, (int, float)):
        raise TypeError(
            f"{where}: retry_backoff takes True, False or a number of seconds, got {value!r}"
        )
    if value < 0:  # Celery takes it for one second
        return 1.0
    seconds = _number(where, "retry_backoff", value)
    return seconds or None


def _max_retries(where: str, option: str, value: Any) -> int | None:
    wanted = f"{where}: {option} takes a whole number, 0 for never or None for no limit"
    return checked_retries(value, wanted)


def _retry_kwargs(where: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: retry_kwargs takes a dict, got {value!r}")
    for name in value:
        if name not in _RETRY_KWARGS:
            raise TypeError(
                f"{where}: retry_kwargs takes what Task.retry takes, got {name!r}"
                f"{did_you_mean(name, _RETRY_KWARGS)}"
            )
    return value


def _countdown(where: str, default_retry_delay: Any, countdown: Any) -> float:
    if countdown is not None:
        return _number(where, "countdown in retry_kwargs", countdown)
    if default_retry_delay is None:
        return 0.0  # no countdown at all: Celery then runs it again at once
    return _number(where, "default_retry_delay", default_retry_delay)
