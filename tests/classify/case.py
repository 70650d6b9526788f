"""One line of the table of cases: a real exception, and the verdict that it deserves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery_resilience.classify.verdict import Kind

#: The moment at which every case is classified: 2026-01-01 00:00:00 UTC.
NOW = 1767225600.0


class Case(NamedTuple):
    id: str
    factory: Callable[[], BaseException]
    kind: Kind
    #: The whole rule, or its beginning if it ends with a dot.
    rule: str
    category: str
    retry_after: float | None = None
    max_retries: int | None = None


def retry(
    id: str, factory: Callable[[], BaseException], rule: str, category: str, **more: Any
) -> Case:
    return Case(id, factory, Kind.TRANSIENT, rule, category, **more)


def later(
    id: str, factory: Callable[[], BaseException], rule: str, category: str, **more: Any
) -> Case:
    return Case(id, factory, Kind.RATE_LIMITED, rule, category, **more)


def never(
    id: str, factory: Callable[[], BaseException], rule: str, category: str, **more: Any
) -> Case:
    return Case(id, factory, Kind.PERMANENT, rule, category, **more)


def raised(call: Callable[[], object]) -> BaseException:
    """The exception that *call* raises."""
    try:
        call()
    except BaseException as exc:
        return exc
    raise AssertionError("nothing was raised")


def chained(exception: BaseException, cause: BaseException) -> BaseException:
    """*exception* as if it had been raised from *cause*."""
    exception.__cause__ = cause
    exception.__suppress_context__ = True
    return exception


def during(exception: BaseException, context: BaseException) -> BaseException:
    """*exception* as if it had been raised while *context* was being handled."""
    exception.__context__ = context
    return exception
