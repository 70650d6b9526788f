"""Asking about an exception of which only the name is known."""

from __future__ import annotations

import sys

import pytest

from celery_resilience.classify import classify_name
from celery_resilience.classify.verdict import Kind
from tests.classify.conftest import library


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("ConnectionError", Kind.TRANSIENT, "network.ConnectionError"),
        ("TimeoutError", Kind.TRANSIENT, "network.TimeoutError"),
        ("ValueError", Kind.PERMANENT, "code.ValueError"),
        ("FileNotFoundError", Kind.PERMANENT, "os.FileNotFoundError"),
        ("Exception", Kind.UNKNOWN, "unknown"),
        ("json.JSONDecodeError", Kind.PERMANENT, "code.ValueError"),
        ("subprocess.TimeoutExpired", Kind.TRANSIENT, "subprocess.TimeoutExpired"),
        ("celery.exceptions.Retry", Kind.UNKNOWN, "control_flow"),
        ("celery_resilience.errors.PermanentError", Kind.PERMANENT, "protocol.PermanentError"),
        ("http:503", Kind.TRANSIENT, "http.status.503"),
        ("http:429", Kind.RATE_LIMITED, "http.status.429"),
        ("http:404", Kind.PERMANENT, "http.status.404"),
    ],
)
def test_name_gets_the_verdict_of_its_class(name: str, kind: Kind, rule: str) -> None:
    verdict = classify_name(name)
    assert (verdict.kind, verdict.rule) == (kind, rule)


LIBRARIES = [
    ("requests.exceptions.ConnectTimeout", "requests.ConnectionError"),
    ("requests.Timeout", "requests.Timeout"),
    ("redis.exceptions.AuthenticationError", "redis.AuthenticationError"),
    ("psycopg.errors.SerializationFailure", "postgres.sqlstate.40001"),
    ("openai.AuthenticationError", "http.status.401"),
]


@pytest.mark.parametrize(("name", "rule"), LIBRARIES)
def test_class_of_a_library_is_imported(name: str, rule: str) -> None:
    library(name.partition(".")[0])
    assert classify_name(name).rule == rule


def test_without_the_library_the_name_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] in ("stripe", "httpx")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "stripe", None)
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert classify_name("stripe.CardError").rule == "stripe.CardError"
    assert classify_name("httpx.TimeoutException").kind is Kind.TRANSIENT
    unknown = classify_name("httpx.NeverHeardOf")
    assert (unknown.kind, unknown.rule) == (Kind.UNKNOWN, "unknown")


def test_hint_says_when_an_instance_would_say_more() -> None:
    library("httpx")
    assert "`response`" in classify_name("httpx.HTTPStatusError").hint


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is not the name of an exception"),
        ("twelve bananas", "is not the name of an exception"),
        ("requests..Timeout", "is not the name of an exception"),
        ("os.path", "is not an exception class"),
        ("print", "is not an exception class"),
        ("TimeoutEror", "check the spelling"),
        ("nowhere_at_all.Broken", "check the spelling"),
        ("json.JSONDecodError", "did you mean JSONDecodeError?"),
        ("http:200", "is no status of a failure"),
        ("http:", "is no status of a failure"),
        ("http:\u0665\u0660\u0663", "is no status of a failure"),
        ("http:99999999999999", "is no status of a failure"),
    ],
)
def test_name_that_cant_be_understood_is_refused_with_a_way_out(name: str, said: str) -> None:
    with pytest.raises(ValueError, match="http:503") as refused:
        classify_name(name)
    assert said in str(refused.value)
    assert repr(name) in str(refused.value)
