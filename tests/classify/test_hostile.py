"""The classifier answers, whatever an exception does while it is being read."""

from __future__ import annotations

import smtplib
import sys
import time
from functools import cache
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_resilience.classify import CATEGORIES, classify, is_control_flow
from celery_resilience.classify.verdict import Kind, Verdict
from tests.classify.case import chained
from tests.classify.conftest import library

READ = [
    "retryable",
    "retry_after",
    "reason",
    "status",
    "status_code",
    "http_status",
    "response",
    "headers",
    "meta",
    "resp",
    "code",
    "errno",
    "orig",
    "cause",
    "last_attempt",
    "exceptions",
    "sqlstate",
    "returncode",
    "body",
    "details",
    "__cause__",
    "args",
    "__context__",
    "__suppress_context__",
    "__dict__",
    "__class__",
    "__str__",
    "__repr__",
    "delay",
]


class Interrupt(BaseException):
    """What a property should never raise, and might."""


def raising(error: type[BaseException]) -> property:
    def read(self: object) -> object:
        raise error("read me not")

    return property(read)


def answered(exception: BaseException) -> Verdict:
    verdict = classify(exception, now=0.0)
    is_control_flow(exception)
    assert isinstance(verdict, Verdict)
    assert isinstance(verdict.kind, Kind)
    assert verdict.category in CATEGORIES
    assert type(verdict.rule) is str
    assert type(verdict.hint) is str
    delay = verdict.retry_after
    assert delay is None or (type(delay) is float and isfinite(delay) and delay >= 0)
    return verdict


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, Interrupt])
@pytest.mark.parametrize("base", [Exception, OSError, ValueError, TimeoutError, BaseException])
def test_properties_may_raise_anything(base: type[BaseException], error: type[Interrupt]) -> None:
    answered(type("Hostile", (base,), {name: raising(error) for name in READ})())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupt])
def test_property_that_raises_does_not_hide_the_next(error: type[BaseException]) -> None:
    cls = type("Hostile", (Exception,), {"status_code": raising(error), "status": 503})
    assert answered(cls()).rule == "http.status.503"


def test_getattr_and_str_may_raise() -> None:
    class Hostile(Exception):
        def __getattr__(self, name: str) -> object:
            raise Interrupt(name)

        def __getattribute__(self, name: str) -> object:
            raise Interrupt(name)

        def __str__(self) -> str:
            raise Interrupt

        __repr__ = __str__
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise Interrupt

    answered(Hostile(Hostile()))


def test_lying_class_is_not_believed() -> None:
    class Liar(Exception):
        @property
        def __class__(self) -> type:  # type: ignore[override]
            return TimeoutError

    assert answered(Liar()).kind is Kind.UNKNOWN


def test_lying_delay_does_not_hide_the_status() -> None:
    delay = type("Liar", (), {"__class__": raising(Interrupt)})()
    cls = type("Hostile", (Exception,), {"retry_after": delay, "status": 503})
    assert answered(cls()).rule == "http.status.503"


def test_attributes_may_answer_to_every_name() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Anything:
            return Anything()

        def __call__(self, *args: object) -> Anything:
            return self

        def __getitem__(self, key: object) -> Anything:
            return self

        def __iter__(self) -> Any:
            while True:
                yield self

    class Hostile(Exception):
        def __getattr__(self, name: str) -> Anything:
            return Anything()

    answered(Hostile(Anything()))


def test_numbers_and_strings_may_be_strange_subclasses() -> None:
    class Int(int):
        def __eq__(self, other: object) -> bool:
            raise Interrupt

        __hash__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __index__ = __eq__  # type: ignore

    class Str(str):
        def lower(self) -> str:
            raise Interrupt

        __hash__ = __eq__ = strip = __len__ = lower  # type: ignore[assignment]

    exception = Exception()
    exception.status_code = Int(429)  # type: ignore[attr-defined]
    exception.headers = [(Str("Retry-After"), Str("3"))]  # type: ignore[attr-defined]
    assert answered(exception).retry_after == 3


def test_metaclass_may_replace_everything() -> None:
    class Meta(type):
        @property
        def __mro__(cls) -> tuple[type, ...]:  # type: ignore[override]
            raise Interrupt

        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise Interrupt

        @property
        def __module__(cls) -> str:  # type: ignore[override]
            raise Interrupt

        def __eq__(cls, other: object) -> bool:
            raise Interrupt

        def __hash__(cls) -> int:
            raise Interrupt

        def __instancecheck__(cls, one: object) -> bool:
            raise Interrupt

    class Hostile(TimeoutError, metaclass=Meta):
        pass

    assert answered(Hostile()).kind is Kind.TRANSIENT


def test_module_name_may_be_anything() -> None:
    for module in (None, 7, "", "..", b"redis"):
        answered(type("Odd", (Exception,), {"__module__": module})())


def test_cycles_end() -> None:
    one, other = Exception(), Exception()
    one.__cause__, other.__cause__ = other, one
    one.args = (one,)
    answered(one)
    own = Exception()
    own.args = (own, [own])
    own.reason = own.orig = own.response = own.headers = own  # type: ignore[attr-defined]
    answered(own)
    group = library("exceptiongroup").ExceptionGroup("x", [one, other])
    one.__context__ = group
    answered(group)


@pytest.mark.parametrize("length", [9, 10_000])
def test_long_chains_end_soon(length: int) -> None:
    exception: BaseException = TimeoutError()
    for _ in range(length):
        exception = chained(Exception(), exception)
    began = time.perf_counter()
    assert answered(exception).kind is Kind.UNKNOWN
    assert time.perf_counter() - began < 1


def test_eight_exceptions_deep_is_deep_enough() -> None:
    exception: BaseException = TimeoutError()
    for _ in range(8):
        exception = chained(Exception(), exception)
    assert answered(exception).kind is Kind.TRANSIENT


def test_large_and_nested_groups_end_soon() -> None:
    group = library("exceptiongroup").ExceptionGroup
    members = [group("x", [TimeoutError() for _ in range(50)]) for _ in range(50)]
    for _ in range(12):
        members = [group("x", members), group("x", members)]
    began = time.perf_counter()
    assert answered(group("x", members)).kind in (Kind.TRANSIENT, Kind.UNKNOWN)
    assert time.perf_counter() - began < 2


def test_member_that_is_shared_is_looked_at_once() -> None:
    group = library("exceptiongroup").ExceptionGroup
    member: Exception = TimeoutError()
    for _ in range(7):
        member = group("x", [member] * 50)
    began = time.perf_counter()
    assert answered(member).kind is Kind.TRANSIENT
    assert time.perf_counter() - began < 1


def test_reader_that_fails_leaves_it_to_the_next_rule() -> None:
    class Refused(dict[str, object]):
        def values(self) -> Any:
            raise Interrupt

    exception = smtplib.SMTPRecipientsRefused(Refused(me=(450, b"x")))
    assert answered(chained(exception, TimeoutError())).rule == "network.TimeoutError"


def test_full_stack_is_survived() -> None:
    """The exception to judge may be the RecursionError itself, with hardly a frame left."""
    found: list[Verdict] = []

    def descend() -> None:
        try:
            descend()
        except RecursionError as exc:
            found.append(classify(exc))
            raise

    with pytest.raises(RecursionError):
        descend()
    assert len(found) > 100
    assert found[-1].rule == "code.RecursionError"
    assert {verdict.kind for verdict in found} <= {Kind.PERMANENT, Kind.UNKNOWN}


def test_unfinished_future_does_not_hold_us_up() -> None:
    from concurrent.futures import Future

    answered(library("tenacity").RetryError(Future()))


ATTRIBUTES = st.dictionaries(
    st.sampled_from([name for name in READ if not name.startswith("__")]),
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=20),
            st.binary(max_size=20),
            st.sampled_from([429, 503, 404, "23505", "ratelimited", TimeoutError(), KeyError()]),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["error", "Error", "Code", "headers", "retry-after", "status"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=8,
    ),
    max_size=6,
)
BASES = [
    ("builtins", "Exception"),
    ("builtins", "OSError"),
    ("builtins", "ValueError"),
    ("botocore.exceptions", "ClientError"),
    ("slack_sdk.errors", "SlackApiError"),
    ("openai", "APIStatusError"),
    ("stripe", "RateLimitError"),
    ("grpc", "RpcError"),
    ("google.api_core.exceptions", "GoogleAPICallError"),
    ("googleapiclient.errors", "HttpError"),
    ("redis.exceptions", "ResponseError"),
    ("psycopg", "Error"),
    ("pymysql.err", "OperationalError"),
    ("pymongo.errors", "OperationFailure"),
    ("sqlalchemy.exc", "DBAPIError"),
    ("smtplib", "SMTPRecipientsRefused"),
    ("subprocess", "CalledProcessError"),
    ("confluent_kafka", "KafkaException"),
    ("tenacity", "RetryError"),
    ("exceptiongroup", "ExceptionGroup"),
]


@cache
def open_to_all(module: str, name: str) -> Any:
    """A class of that library whose attributes are what its ``given`` says."""

    class Open(getattr(library(module), name)):  # type: ignore[misc]
        given: dict[str, object] = {}  # noqa: RUF012

        def __getattribute__(self, attribute: str) -> object:
            given = type(self).given
            return given[attribute] if attribute in given else super().__getattribute__(attribute)

    return Open


@pytest.mark.parametrize(("module", "name"), BASES, ids=[name for _, name in BASES])
@settings(deadline=None)
@given(given=ATTRIBUTES, args=st.lists(st.one_of(st.integers(), st.text()), max_size=3))
def test_attributes_of_any_form_get_an_answer(
    module: str, name: str, given: dict[str, object], args: list[object]
) -> None:
    cls = open_to_all(module, name)
    exception = cls.__new__(cls, "x", [Exception()])
    exception.args = tuple(args)
    cls.given = given
    try:
        answered(exception)
    finally:
        cls.given = {}


def test_every_exception_class_that_is_loaded_gets_an_answer() -> None:
    waiting: list[type[BaseException]] = [BaseException]
    seen: set[int] = set()
    while waiting:
        cls = waiting.pop()
        if id(cls) in seen:
            continue
        seen.add(id(cls))
        waiting.extend(cls.__subclasses__())
        try:
            exception = cls.__new__(cls)
        except TypeError:  # groups want members
            continue
        answered(exception)
    assert len(seen) > 200, sys.version
