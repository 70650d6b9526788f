"""How long the server asks to wait, in every dialect."""

from __future__ import annotations

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_resilience.classify import classify
from celery_resilience.classify.retry_after import DIALECTS, fold, server_delay
from celery_resilience.classify.verdict import Kind
from tests.classify.case import NOW, raised
from tests.classify.conftest import library


def delay(headers: object, quota: bool = True) -> float | None:
    return server_delay(fold(headers), lambda: NOW, quota=quota)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"x-amz-retry-after": "2500"}, 2.5),
        ({"grpc-retry-pushback-ms": "100"}, 0.1),
        ({"Retry-After": "12"}, 12.0),
        ({"RETRY-AFTER": " 0.5 "}, 0.5),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:01:00 -0000"}, 60.0),
        ({"ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "30"}, 30.0),
        ({"x-ratelimit-reset": "1767225630"}, 30.0),
        ({"x-ratelimit-reset": "1767225630000"}, 30.0),
        ({"x-rate-limit-reset": "1767225630"}, 30.0),
        ({"x-ratelimit-reset": "1767225630", "Date": "Thu, 01 Jan 2026 00:00:10 GMT"}, 20.0),
        ({"x-ratelimit-reset-after": "1.25"}, 1.25),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "120ms"}, 0.12),
        ({"x-ratelimit-reset-requests": "1h2m3.5s"}, 3723.5),
        ({"anthropic-ratelimit-tokens-reset": "2026-01-01T00:00:45Z"}, 45.0),
        ({"anthropic-ratelimit-input-tokens-reset": "2026-01-01T01:00:45+01:00"}, 45.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e999"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, None),
        ({"Retry-After": "9" * 5000}, None),
        ({"x-ratelimit-reset": "1500000000"}, None),
        ({"anthropic-ratelimit-tokens-reset": "2026-13-01T00:00:45Z"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_dialect_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert delay(headers) == (None if seconds is None else pytest.approx(seconds))


def test_dialects_are_asked_in_order() -> None:
    """Each one alone, then with every later one beside it: the earliest decides."""
    said = [
        ("retry-after-ms", "1000"),
        ("x-ms-retry-after-ms", "2000"),
        ("x-amz-retry-after", "3000"),
        ("grpc-retry-pushback-ms", "4000"),
        ("retry-after", "5"),
        ("ratelimit-reset", "6"),
        ("x-ratelimit-reset", "7"),
        ("x-rate-limit-reset", "8"),
        ("x-ratelimit-reset-after", "9"),
        ("x-ratelimit-reset-requests", "10s"),
        ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:11Z"),
    ]
    for at in range(len(said)):
        assert delay(dict(reversed(said[at:]))) == pytest.approx(at + 1)


def test_header_that_cant_be_read_leaves_it_to_the_next() -> None:
    assert delay({"retry-after-ms": "soon", "retry-after": "-1", "ratelimit-reset": "6"}) == 6


def test_state_of_a_quota_counts_only_for_a_rate_limit() -> None:
    for name, how, when in DIALECTS:
        value = {"milliseconds": "9", "ISO 8601": "2026-01-01T00:00:11Z"}.get(how, "9")
        headers = {name.replace("*", "requests"): value}
        assert (delay(headers, quota=False) is None) == (when == "rate limits")
        assert delay(headers, quota=True) is not None


def test_bucket_that_ran_dry_counts_and_else_the_slowest() -> None:
    resets = {"x-ratelimit-reset-requests": "5s", "x-ratelimit-reset-tokens": "50s"}
    assert delay(resets) == 50
    assert delay({**resets, "x-ratelimit-remaining-requests": "0"}) == 5
    iso = {
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:05Z",
        "anthropic-ratelimit-tokens-reset": "2026-01-01T00:00:50Z",
    }
    assert delay(iso) == 50
    assert delay({**iso, "anthropic-ratelimit-requests-remaining": "0"}) == 5


def test_far_future_is_given_as_it_is() -> None:
    asked = delay({"Retry-After": "Thu, 01 Jan 2099 00:00:00 GMT"})
    assert asked == pytest.approx(73 * 365.25 * 86400, rel=0.001)


class _Odd:
    def items(self) -> list[object]:
        return [("retry-after",), None, 7, ("retry-after", "8", "9"), ("Retry-After", "3")]


class _Endless:
    def items(self) -> Any:
        while True:
            yield "x", "y"


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "3"},
        {b"Retry-After": b"3"},
        {"Retry-After": ["3", "4"]},
        {"Retry-After": 3},
        {"Retry-After": 3.0},
        [("Retry-After", "3")],
        (("retry-after", "3"), ("retry-after", "4")),
        [[b"retry-after", b"3"]],
        _Odd(),
    ],
)
def test_headers_come_in_many_shapes(headers: object) -> None:
    assert delay(headers) == 3


@pytest.mark.parametrize(
    "headers", [None, "Retry-After: 3", b"x", 7, object(), [1, 2], _Endless(), {}]
)
def test_value_that_is_no_header_map_says_nothing(headers: object) -> None:
    assert delay(headers) is None


def test_header_classes_of_the_clients_are_understood() -> None:
    sent = {"Retry-After": "3"}
    for shape in (
        library("httpx").Headers(sent),
        library("httpx2").Headers(sent),
        library("requests").structures.CaseInsensitiveDict(sent),
        library("multidict").CIMultiDict(sent),
        library("urllib3").HTTPHeaderDict(sent),
        library("elastic_transport").HttpHeaders(sent),
        library("httplib2").Response(sent),
    ):
        assert delay(shape) == 3, type(shape)


class _TooManyRequests(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(429)
        self.send_header("Retry-After", "17")
        self.end_headers()
        self.wfile.write(json.dumps({}).encode())

    def log_message(self, *args: object) -> None:
        pass


def test_every_client_reports_the_same_answer_of_a_real_server() -> None:
    httpx, requests = library("httpx"), library("requests")
    server = HTTPServer(("127.0.0.1", 0), _TooManyRequests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for fetch in (
            lambda: httpx.get(url, trust_env=False).raise_for_status(),
            lambda: requests.get(url, timeout=5).raise_for_status(),
            lambda: urllib.request.urlopen(url, timeout=5),
        ):
            found = classify(raised(fetch))
            assert (found.kind, found.retry_after) == (Kind.RATE_LIMITED, 17.0)
    finally:
        server.shutdown()
        server.server_close()


NAMES = st.sampled_from([name.replace("*", "tokens") for name, _, _ in DIALECTS])
VALUES = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40),
    st.integers(),
    st.floats(),
    st.none(),
    st.lists(st.text(max_size=5), max_size=3),
    st.from_regex(r"\A-?[0-9]{1,400}(\.[0-9]{1,20})?(e[0-9]{1,4})?(ms|s|m|h)?\Z"),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
)


@settings(deadline=None)
@given(st.dictionaries(st.one_of(NAMES, st.just("date"), st.text(max_size=9)), VALUES, max_size=8))
def test_headers_of_any_form_give_a_delay_that_can_be_waited_or_none(
    headers: dict[str, object],
) -> None:
    seconds = delay(headers)
    assert seconds is None or (type(seconds) is float and isfinite(seconds) and seconds >= 0)


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=60))
def test_retry_after_of_any_form_gives_a_delay_that_can_be_waited_or_none(
    value: str, date: str
) -> None:
    seconds = delay({"Retry-After": value, "Date": date})
    assert seconds is None or (isfinite(seconds) and seconds >= 0)
