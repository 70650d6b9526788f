"""What is asked before what, and what an exception may say of itself."""

from __future__ import annotations

import errno
import ssl
from datetime import datetime, timedelta
from typing import Any

import pytest

from celery_resilience.classify import classify, is_control_flow
from celery_resilience.classify.verdict import Kind
from celery_resilience.errors import PermanentError, RateLimitedError, TransientError
from tests.classify.case import NOW, chained, during
from tests.classify.conftest import library


class Foreign(Exception):
    """An exception of somebody's own, with whatever attributes a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


def verdict(exception: BaseException) -> tuple[Kind, str, float | None]:
    found = classify(exception, now=NOW)
    return found.kind, found.rule, found.retry_after


@pytest.mark.parametrize(
    ("module", "name", "args"),
    [
        ("celery.exceptions", "Retry", ()),
        ("celery.exceptions", "Ignore", ()),
        ("celery.exceptions", "Reject", ()),
        ("celery.exceptions", "WorkerShutdown", (0,)),
        ("celery.exceptions", "WorkerTerminate", (0,)),
        ("billiard.exceptions", "Terminated", ()),
    ],
)
def test_control_flow_is_recognised_and_not_judged(
    module: str, name: str, args: tuple[object, ...]
) -> None:
    cls = getattr(library(module), name)
    mine = type("Mine", (cls,), {"__module__": "shop"})
    for exception in (cls(*args), mine(*args)):
        assert is_control_flow(exception)
        assert verdict(exception) == (Kind.UNKNOWN, "control_flow", None)


def test_error_is_no_control_flow() -> None:
    assert not is_control_flow(ValueError())
    assert not is_control_flow(SystemExit())
    assert not is_control_flow(type("Retry", (Exception,), {"__module__": "shop"})())


def test_our_own_errors_win_over_a_certificate_and_over_what_they_wrap() -> None:
    certificate = ssl.SSLCertVerificationError(1, "x")
    assert verdict(chained(TransientError("x"), certificate))[0] is Kind.TRANSIENT
    assert verdict(PermanentError(TimeoutError()))[0] is Kind.PERMANENT


def test_subclass_of_our_errors_is_one_of_them() -> None:
    class TooFast(RateLimitedError):
        pass

    assert verdict(TooFast("x", retry_after=2)) == (
        Kind.RATE_LIMITED,
        "protocol.RateLimitedError",
        2.0,
    )


def test_retryable_flag_is_believed() -> None:
    assert verdict(Foreign(retryable=True)) == (Kind.TRANSIENT, "protocol.retryable", None)
    assert verdict(Foreign(retryable=False, retry_after=3)) == (
        Kind.PERMANENT,
        "protocol.retryable",
        None,
    )
    assert verdict(Foreign(retryable=False, status_code=503))[0] is Kind.PERMANENT
    assert verdict(Foreign(retryable=True, status_code=404))[0] is Kind.TRANSIENT


@pytest.mark.parametrize("flag", [None, 1, 0, "yes", [], object()])
def test_retryable_flag_that_is_no_bool_is_not_believed(flag: object) -> None:
    assert verdict(Foreign(retryable=flag))[1] == "unknown"


def test_flag_does_not_make_a_rate_limit_cost_a_retry() -> None:
    limited = Foreign(retryable=True, status_code=429, headers={"Retry-After": "4"})
    assert verdict(limited) == (Kind.RATE_LIMITED, "http.status.429", 4.0)


@pytest.mark.parametrize("delay", [5, 5.0, timedelta(seconds=5)])
def test_delay_is_believed_and_keeps_the_kind_that_the_rest_says(delay: object) -> None:
    assert verdict(Foreign(retry_after=delay)) == (Kind.RATE_LIMITED, "protocol.retry_after", 5.0)
    assert verdict(Foreign(retry_after=delay, status_code=503)) == (
        Kind.TRANSIENT,
        "http.status.503",
        5.0,
    )


@pytest.mark.parametrize(
    "delay",
    [None, True, "5", -1, float("nan"), float("inf"), 10**400, datetime(2026, 1, 1), [5]],
)
def test_delay_that_is_no_number_is_not_believed(delay: object) -> None:
    assert verdict(Foreign(retry_after=delay))[1] == "unknown"


def test_library_that_derives_from_valueerror_is_not_a_bug() -> None:
    mine = type("Mine", (library("redis.exceptions").LockError,), {"__module__": "shop"})
    assert verdict(mine("x"))[:2] == (Kind.TRANSIENT, "redis.LockError")


def test_nearest_class_wins() -> None:
    errors = library("redis.exceptions")
    assert verdict(type("Mine", (errors.AuthenticationError,), {})("x"))[1] == (
        "redis.AuthenticationError"
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("redis.exceptions", "ConnectionError"),
        ("pymongo.errors", "AutoReconnect"),
        ("amqp.exceptions", "RecoverableConnectionError"),
        ("sqlalchemy.exc", "TimeoutError"),
        ("kombu.exceptions", "OperationalError"),
    ],
)
def test_number_on_a_database_or_broker_error_is_no_http_status(module: str, name: str) -> None:
    exception = getattr(library(module), name)("x")
    exception.status = exception.status_code = 404
    assert verdict(exception)[0] is Kind.TRANSIENT


def test_context_of_an_unknown_error_counts_unless_it_is_a_bug() -> None:
    """A cache miss on the way to a request that then fails does not make the request a bug."""
    assert verdict(during(Foreign(), KeyError("cached")))[1] == "unknown"
    assert verdict(during(Foreign(), FileNotFoundError(errno.ENOENT, "x")))[0] is Kind.PERMANENT


def test_suppressed_context_is_not_looked_at() -> None:
    exception = during(Foreign(), TimeoutError())
    exception.__suppress_context__ = True  # as "raise ... from None" does
    assert verdict(exception)[1] == "unknown"


def test_plain_exception_is_unknown() -> None:
    for exception in (Exception("x"), RuntimeError("x"), OSError("no errno")):
        assert verdict(exception) == (Kind.UNKNOWN, "unknown", None)


def test_sdk_of_the_same_generator_is_known_by_its_classes() -> None:
    base = type("APIConnectionError", (Exception,), {"__module__": "somebodys_sdk"})
    assert verdict(type("APITimeoutError", (base,), {"__module__": "somebodys_sdk"})())[0] is (
        Kind.TRANSIENT
    )


def test_unlisted_exit_code_or_errno_is_unknown() -> None:
    import subprocess

    assert verdict(subprocess.CalledProcessError(42, "x"))[0] is Kind.UNKNOWN
    assert verdict(OSError(errno.ENOTEMPTY, "x"))[0] is Kind.UNKNOWN


def test_hint_names_the_delay() -> None:
    found = classify(Foreign(status_code=429, headers={"Retry-After": "12"}))
    assert found.hint == "rate limited: the server asked for 12 s"


def test_class_that_takes_the_place_of_another_gets_a_plan_of_its_own() -> None:
    """Plans are remembered by id, and ids are used again once a class is gone."""
    for at in range(5000):
        cls = type("Made", (TimeoutError if at % 2 else KeyError,), {"__module__": "shop"})
        assert classify(cls()).kind is (Kind.TRANSIENT if at % 2 else Kind.PERMANENT)


def test_classes_made_on_the_fly_do_not_fill_the_memory() -> None:
    from celery_resilience.classify import plan as plans

    for _ in range(5000):
        classify(type("Made", (Exception,), {})())
    assert len(plans._plans) <= plans._MOST
