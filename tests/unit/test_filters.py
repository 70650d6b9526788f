"""Filters choose letters and waiting retries by what they say, and never run what is in them."""

from __future__ import annotations

import json
import pickle
import zlib
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.compression import compress

from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.filters import Filters, argument, moment, seconds
from celery_resilience.policy.decision import Reason

NOW = 1_800_000_000.0


def message(*args: Any, headers: dict[str, Any] | None = None, **kwargs: Any) -> Envelope:
    told = {"task": "shop.orders.charge", "id": "1", **(headers or {})}
    body = json.dumps([args, kwargs, {}]).encode()
    return Envelope(body, "application/json", "utf-8", told, queue="shop")


def accepts(filters: Filters, envelope: Envelope | None = None, **facts: Any) -> bool:
    facts = {"error": "requests.exceptions.Timeout", "message": "too slow", "at": NOW, **facts}
    return filters.accept(envelope or message(), **facts)


def test_filters_without_values_accept_all():
    assert accepts(Filters())
    assert not Filters()
    assert Filters(task="x")
    assert Filters(args=(("n", "1"),))
    assert Filters(since=0.0), "0 is a moment"


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("shop.orders.charge", True), ("shop.*", True), ("*charge", True), ("*", True),
        ("shop.orders", False), ("SHOP.*", False), ("charge", False),
    ],
)  # fmt: skip
def test_task_is_chosen_by_a_pattern_of_its_name(pattern, meant):
    assert accepts(Filters(task=pattern)) is meant


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("Timeout", True), ("requests.exceptions.Timeout", True), ("requests.*", True),
        ("*: too slow", True), ("Timeout: too*", True), ("*slow*", True),
        ("Time", False), ("timeout", False), ("exceptions.Timeout", False),
    ],
)  # fmt: skip
def test_error_is_chosen_by_its_type_or_its_message(pattern, meant):
    assert accepts(Filters(error=pattern)) is meant


def test_queue_is_the_whole_name():
    assert accepts(Filters(queue="shop"))
    assert not accepts(Filters(queue="sho"))


def test_time_begins_with_since_and_ends_before_until():
    between = Filters(since=NOW - 10, until=NOW)
    assert [accepts(between, at=NOW + n) for n in (-11, -10, -1, 0)] == [False, True, True, False]


def test_reason_is_for_letters():
    assert accepts(Filters(reason=Reason.EXHAUSTED), reason=Reason.EXHAUSTED)
    assert not accepts(Filters(reason=Reason.EXHAUSTED), reason=Reason.PERMANENT)
    assert not accepts(Filters(reason=Reason.EXHAUSTED))


def test_values_of_one_filter_are_alternatives():
    assert accepts(Filters(task=("mail.*", "shop.*"), error=["KeyError", "Timeout"]))
    assert not accepts(Filters(task=("mail.*", "x"), error="Timeout"))
    assert accepts(Filters(queue=("mail", "shop")))
    either = Filters(reason=(Reason.DEADLINE, Reason.EXHAUSTED))
    assert accepts(either, reason=Reason.EXHAUSTED)
    assert not accepts(either, reason=Reason.PERMANENT)
    assert not Filters(task=())


def test_group_or_fingerprint_is_chosen_by_its_beginning():
    def groups() -> tuple[str, ...]:
        return ("3f9a2c10", "c01d9e2a")

    for begin in ("3f9a", "c01d9e2a", ("beef", "3")):
        assert accepts(Filters(group=begin), groups=groups)
    assert not accepts(Filters(group="9a2c"), groups=groups)
    assert not accepts(Filters(group="3f9a")), "a waiting retry has none"


def test_filters_must_all_accept():
    assert accepts(Filters(task="shop.*", error="Timeout"))
    assert not accepts(Filters(task="shop.*", error="KeyError"))


@pytest.mark.parametrize(
    ("value", "texts", "others"),
    [
        ("42", ["42"], ["042", "4", '"42"']),
        (42, ["42", "42.0"], ["4", "forty-two"]),
        (1, ["1"], ["true", "True"]),
        (True, ["True", "true"], ["1"]),
        (None, ["None", "null"], ["", "0"]),
        (0.5, ["0.5", "5e-1"], ["0"]),
        ([1, 2], ["[1, 2]", "[1,2]"], ["1"]),
        ("", [""], ["None"]),
        ("a=b", ["a=b"], ["a"]),
    ],
)
def test_argument_is_chosen_by_its_value(value, texts, others):
    for text in texts:
        assert accepts(Filters(args=(("k", text),)), message(k=value)), text
    for text in others:
        assert not accepts(Filters(args=(("k", text),)), message(k=value)), text
    assert not accepts(Filters(args=(("other", texts[0]),)), message(k=value))


def test_positional_argument_has_its_place_and_its_parameters_name():
    called = message("acme", 42)

    def parameters(task: str) -> tuple[str, ...]:
        assert task == "shop.orders.charge"
        return ("tenant", "number", "rest")

    assert accepts(Filters(args=(("1", "42"), ("0", "acme"))), called)
    assert accepts(Filters(args=(("number", "42"),)), called, parameters=parameters)
    assert not accepts(Filters(args=(("tenant", "42"),)), called, parameters=parameters)
    assert not accepts(Filters(args=(("number", "42"),)), called), "nobody knows its parameters"


def test_arguments_must_all_match():
    assert accepts(Filters(args=(("a", "1"), ("b", "2"))), message(a=1, b=2))
    assert not accepts(Filters(args=(("a", "1"), ("b", "3"))), message(a=1, b=2))


def test_compressed_body_is_read():
    body, content_type = compress(json.dumps([[], {"n": 7}, {}]).encode(), "zlib")
    called = Envelope(
        body, "application/json", "utf-8", {"task": "t", "compression": content_type}, queue="shop"
    )
    assert zlib.decompress(body)
    assert accepts(Filters(args=(("n", "7"),)), called)


def test_arguments_of_protocol_1_are_read_from_the_body():
    body = json.dumps({"task": "t", "id": "1", "args": [1], "kwargs": {"n": 7}}).encode()
    called = Envelope(body, "application/json", "utf-8", {}, queue="shop")
    assert accepts(Filters(task="t", args=(("0", "1"), ("n", "7"))), called)


def test_pickle_is_never_opened():
    """What its sender has let be shown is all that is known of it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was unpickled",))

    headers = {"task": "t", "argsrepr": "(1, 'a')", "kwargsrepr": "{'n': 7, 'token': '***'}"}
    called = Envelope(
        pickle.dumps(Bomb()), "application/x-python-serialize", "binary", headers, queue="shop"
    )
    assert accepts(Filters(args=(("n", "7"), ("1", "a"))), called)
    assert not accepts(Filters(args=(("n", "8"),)), called)


@given(st.binary(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_filters_never_raise_for_a_strange_message_or_text(body, name, text):
    headers = {"task": "t", "argsrepr": text, "kwargsrepr": name}
    for content_type in ("application/json", "application/x-yaml", "x/y"):
        called = Envelope(body, content_type, "utf-8", headers, queue="shop")
        accepts(Filters(task=text, error=name, args=((name, text),)), called)


# What is typed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90.0), ("0.5", 0.5), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0),
        ("2d12h", 216_000.0), (" 5M ", 300.0), ("1h30m", 5400.0), ("5min", 300.0),
        ("2w", 1_209_600.0), ("5 m", 300.0), ("1 hour 30 minutes", 5400.0), ("10secs", 10.0),
        ("3hrs", 10_800.0),
    ],
)  # fmt: skip
def test_span_of_time_is_read(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "m", "-5m", "5mins ago", "soon", "1h-2m", "1.2.3s", "nan", "5mo", "1y"]
)
def test_span_of_time_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"90s, 5min, 1\.5h, 2d or 2w, got"):
        seconds(text)


def test_moment_is_ago_or_by_the_clock():
    assert moment("2h", NOW) == NOW - 7200
    assert moment("2026-03-01T12:00Z".replace("Z", "+00:00"), NOW) == 1_772_366_400.0
    assert moment("2026-03-01T13:00:00+01:00", NOW) == 1_772_366_400.0
    assert moment("2026-03-01T12:00:00Z", NOW) == 1_772_366_400.0
    local = datetime(2026, 3, 1, 12, 0).astimezone(timezone.utc).timestamp()
    assert moment("2026-03-01 12:00", NOW) == local
    for text in ("tomorrow", "2026-13-01", "", "25:00", "12:60"):
        with pytest.raises(ValueError, match="a moment is written"):
            moment(text, NOW)


def test_moment_of_today_is_read():
    """By the local clock; a time that is still to come was yesterday's."""
    noon = datetime(2026, 3, 1, 12, 0).timestamp()
    assert moment("12:36", noon + 3600) == noon + 36 * 60
    assert moment("12:36", noon) == datetime(2026, 2, 28, 12, 36).timestamp()
    assert moment("9:05", noon) == moment("09:05:00", noon) == noon - 175 * 60
    assert moment("Today", noon) == noon - 12 * 3600
    assert moment("yesterday", noon) == noon - 36 * 3600
    assert moment("now", noon) == noon
    assert moment("2w", noon) == noon - 14 * 86_400
    assert moment("5min", noon) == noon - 300


def test_argument_has_a_name_and_a_value():
    assert argument("customer=42") == ("customer", "42")
    assert argument("q=a=b") == ("q", "a=b")
    assert argument("q=") == ("q", "")
    for text in ("customer", "=42", " =1"):
        with pytest.raises(ValueError, match="name=value"):
            argument(text)
