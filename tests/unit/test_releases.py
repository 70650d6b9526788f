"""Headers and letters that earlier releases have written are read for ever after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from tests.fixtures import RELEASES, dumps, messages_of, recorded
from tests.fixtures.record import BROKERS

EVERY = pytest.mark.parametrize(
    ("release", "broker"), [(release, broker) for release in RELEASES for broker in BROKERS]
)


def envelopes(phase: Mapping[str, Any]) -> Iterator[tuple[str, Envelope]]:
    """Each message of a *phase* as a worker or a command would have it."""
    for queue, told in messages_of(phase["broker"]):
        if "content-type" in told:
            yield queue, Envelope.from_wire(told, queue)
            continue
        properties = dumps.as_value(told["properties"])
        received = SimpleNamespace(
            headers=properties.pop("application_headers"),
            body=dumps.encoded(dumps.as_value(told["body"])),
            content_type=properties.get("content_type"),
            content_encoding=properties.get("content_encoding"),
            properties=properties,
            delivery_info=told,
            errors=["as it travelled"],  # no client has decompressed it
        )
        yield queue, Envelope.received(received, queue)


def headers(release: str, broker: str) -> list[dict[str, Any]]:
    found = recorded(release, broker).values()
    texts = [e.headers.get(HEADER) for phase in found for _, e in envelopes(phase)]
    return [json.loads(text) for text in texts if text]


@EVERY
def test_headers_fields_are_all_covered(release: str, broker: str) -> None:
    for header in headers(release, broker):
        read = History.from_json(header).to_json()
        assert {name: read.get(name) for name in header if name != "letter"} == {
            name: value for name, value in header.items() if name != "letter"
        }


@EVERY
def test_header_of_each_kind_was_recorded(release: str, broker: str) -> None:
    found = headers(release, broker)
    for key in ("starts", "queue", "context", "succeeded", "letter", "lineage", "attempts"):
        assert any(header.get(key) for header in found), key
    assert any(header["count"] > len(header["attempts"]) for header in found)


def as_known(facts: Any, then: Any) -> Any:
    """What *facts* say of that which was known *then*."""
    if isinstance(then, dict) and isinstance(facts, dict):
        return {name: as_known(facts.get(name), known) for name, known in then.items()}
    if isinstance(then, list) and isinstance(facts, (list, tuple)) and len(then) == len(facts):
        return [as_known(one, known) for one, known in zip(facts, then, strict=True)]
    return facts


@EVERY
def test_letter_says_what_it_said(release: str, broker: str) -> None:
    dead = recorded(release, broker)["dead"]
    said = {letter["id"]: letter for letter in dead["said"]}
    read = [
        DeadLetter.from_envelope(envelope)
        for queue, envelope in envelopes(dead)
        if queue.startswith("dead")
    ]
    assert len(read) == len(said)
    for letter in read:
        facts = dumps.facts(letter)
        if letter.id in said:
            recorded_facts = said.pop(letter.id)  # later releases know more of a letter
            assert as_known(facts, recorded_facts) == recorded_facts
    # One that carries no letter's header has an id of each release's own making.
    assert {letter["reason"] for letter in said.values()} <= {"unroutable"}
