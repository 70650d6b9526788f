"""Letters, histories and envelopes survive their way, and whatever is done to them on it."""

from __future__ import annotations

import json
import pickle
import re
import time
import traceback
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace as Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.compression import compress
from kombu.serialization import dumps

from celery_resilience.brokers.rabbitmq.delay import level_name
from celery_resilience.messages.dead_letter import DeadLetter, written_anew
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import DUE, HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.policy.decision import Reason

seconds = st.floats(0, 1e10, allow_nan=False)
short = st.text(max_size=60)
attempts = st.builds(
    Attempt,
    number=st.integers(1, 10_000),
    at=seconds,
    ran=seconds,
    worker=short,
    error=short,
    message=st.text(max_size=500),
    kind=short,
    rule=short,
    delay=st.none() | seconds,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def envelope(**changes) -> Envelope:
    headers = {"task": "shop.charge", "id": "1f3", "retries": 2, "eta": None, "argsrepr": "(1,)"}
    plain = Envelope(
        b"[[1], {}, {}]", "application/json", "utf-8", headers, {"priority": 3},
        queue="shop", exchange="orders", routing_key="orders.new",
    )  # fmt: skip
    return replace(plain, **changes)


def on_the_wire(sent: Envelope, queue: str = "dead_letter") -> Envelope:
    """The envelope that comes out of a Redis list that *sent* was put into."""
    return Envelope.from_wire(json.loads(json.dumps(sent.to_wire("tag", queue))), queue)


@pytest.mark.parametrize("body", [5, 1234, 10**12, 1.5, True, [1, 2], [300], {"a": 1}])
@pytest.mark.parametrize("encoding", [None, "base64", "?"])
def test_body_that_is_no_text_is_kept_as_json(body, encoding):
    """On Redis it is the sender's; bytes() would make NULs of a number."""
    sent = {"body": body, "properties": {"body_encoding": encoding}}
    assert json.loads(Envelope.from_wire(sent, "shop").body) == body


# Histories


@given(st.lists(attempts, max_size=30), st.integers(0, 3))
def test_history_comes_back_as_it_was(made, losses):
    history = History()
    for number, attempt in enumerate(made):
        history = history.add(attempt, lost=number < losses)
    assert History.loads(history.dumps()) == history
    assert history.count == len(made)
    assert history.losses == min(losses, len(made))


@given(st.lists(attempts, min_size=11, max_size=40))
def test_first_two_and_the_last_eight_attempts_are_kept(made):
    history = History()
    for attempt in made:
        history = history.add(attempt)
    assert history.attempts == (*made[:2], *made[-8:])
    assert history.first == made[0].at


@given(st.lists(st.text(max_size=64), max_size=30))
def test_replayed_history_is_new_but_for_its_lineage(letters):
    history = History().add(Attempt(1, 1.0, 0.0, "w", "E", "m", "transient", "r"))
    for letter in letters:
        history = history.replayed(letter)
    assert history.lineage == tuple(letters[-10:])
    if letters:
        assert (history.count, history.first, history.attempts) == (0, None, ())


@given(st.one_of(st.text(), st.binary(), json_values.map(json.dumps), json_values))
def test_garbage_in_the_header_is_an_empty_history(garbage):
    history = History.loads(garbage)
    assert isinstance(history, History)
    history.add(Attempt(1, 1.0, 0.0, "w", "E", "m", "transient", "r")).dumps()


HEADER_FIELDS = ("first", "count", "attempts", "losses", "lineage", "letter", "v")


@given(st.dictionaries(st.sampled_from(HEADER_FIELDS), json_values))
def test_garbage_in_the_fields_is_left_out(data):
    history = History.from_json(data)
    assert History.loads(history.dumps()) == history


# Letters


@given(st.sampled_from(Reason), st.lists(attempts, max_size=12), short, short, short, short, short)
def test_letter_comes_back_as_it_was(reason, made, kind, rule, hint, worker, version):
    history = History()
    for attempt in made:
        history = history.add(attempt)
    written = DeadLetter.write(
        reason, envelope(), history=history, error=ErrorRecord("ValueError", "no"), kind=kind,
        verdict_rule=rule, category=kind, hint=hint, rule=rule, worker=worker, app_version=version,
    )  # fmt: skip
    assert DeadLetter.from_envelope(on_the_wire(written.to_envelope())) == written


def test_letter_knows_its_message():
    letter = DeadLetter.write(Reason.EXHAUSTED, envelope())
    assert (letter.task, letter.task_id) == ("shop.charge", "1f3")
    assert letter.arguments == "args=(1,) kwargs="
    assert letter.envelope == envelope()


@given(json_values, st.sampled_from(["letter", None]))
def test_garbage_header_is_a_letter_all_the_same(garbage, inside):
    text = json.dumps({inside: garbage} if inside else garbage)
    letter = DeadLetter.from_envelope(envelope().with_header(text))
    assert letter.envelope.headers == envelope().headers
    assert isinstance(letter.reason, Reason)
    DeadLetter.from_envelope(letter.to_envelope())


@pytest.mark.parametrize("exchange", [DUE, level_name(2), level_name(0, priority=7)])
def test_retry_whose_queue_has_gone_is_a_letter_that_names_it(exchange):
    """RabbitMQ puts it there and tells nothing: what the retry carries must do."""
    waited = History(count=2, queue="shop").dumps()
    put_there = envelope(queue="dead_letter", exchange=exchange, routing_key="0.1.shop.dead_letter")
    letter = DeadLetter.from_envelope(put_there.with_header(waited))
    assert (letter.reason, letter.envelope.queue) == (Reason.UNROUTABLE, "shop")
    assert letter.rule == "its queue shop has gone"
    assert letter.history.count == 2
    replayed = History.loads(letter.replayed().headers[HEADER])
    assert (replayed.queue, replayed.lineage) == ("", (letter.id,))


@pytest.mark.parametrize("queue", [None, 3, ["shop"], "x" * 5000])
def test_queue_that_cannot_be_one_is_left_out(queue):
    """One that is cut would be another queue."""
    assert History.from_json({"queue": queue}).queue == ""


@given(st.dictionaries(short, json_values, max_size=4), st.binary(max_size=50), st.none() | short)
def test_message_of_any_form_becomes_a_letter(headers, body, content_type):
    received = Envelope(body, content_type, "utf-8", headers, queue="dead_letter")
    letter = DeadLetter.from_envelope(received)
    assert letter.id
    assert all(isinstance(t, str) for t in (letter.task, letter.task_id, letter.arguments))
    assert letter.fingerprint
    assert DeadLetter.from_envelope(received).id == letter.id


class Hostile(Exception):
    """Says as much as it can, or nothing at all."""

    def __init__(self, said: object) -> None:
        super().__init__()
        self.said = said

    def __str__(self) -> str:
        if isinstance(self.said, BaseException):
            raise self.said
        return str(self.said)


HOSTILE = ["x" * 10**6, "漢" * 10**6, "\U0001f600" * 10**5, "\udc80\0" * 10**5, '"\\' * 10**5]


@pytest.mark.parametrize("said", [*HOSTILE, RuntimeError("no"), SystemExit(1)], ids=range(7))
def test_letter_weighs_at_most_64_kb_beside_its_body(said):
    def fail(depth: int) -> None:
        if depth:
            try:
                fail(depth - 1)
            except Hostile as exc:
                raise Hostile(said) from exc
        raise Hostile(said)

    with pytest.raises(Hostile) as caught:
        fail(20)
    error = ErrorRecord.of(caught.value)
    history = History()
    text = error.message
    for number in range(30):
        attempt = Attempt(number, 1.0, 0.0, text[:500], text[:500], text[:500], "k", text[:500])
        history = history.add(attempt)
    letter = DeadLetter.write(
        Reason.EXHAUSTED, envelope(), history=history, error=error,
        hint=text[:2000], rule=text[:2000], worker=text[:500],
    )  # fmt: skip
    header = letter.to_envelope().headers[HEADER]
    assert len(header.encode()) <= 64 * 1024
    read = DeadLetter.from_envelope(on_the_wire(letter.to_envelope()))
    assert (read.id, read.reason) == (letter.id, letter.reason)
    assert read.history.count == 30


def test_innermost_frames_are_kept():
    def fail(depth: int) -> None:
        if depth == 0:
            raise ValueError("here")
        fail(depth - 1)

    with pytest.raises(ValueError, match="here") as caught:
        fail(500)
    facts = ErrorRecord.of(caught.value)
    assert facts.traceback.rstrip().endswith("ValueError: here")
    assert len(facts.traceback) <= 24_010


def test_long_message_does_not_take_the_place_of_the_frames():
    """Not in the traceback, and not where a letter is cut to what its header may weigh."""

    def fail_deep_inside() -> None:
        raise ValueError("漢" * 50_000)

    def fail() -> None:
        try:
            fail_deep_inside()
        except ValueError as exc:
            raise KeyError("no " * 20_000) from exc

    with pytest.raises(KeyError) as caught:
        fail()
    facts = ErrorRecord.of(caught.value)
    history = History()
    for n in range(10):
        history = history.add(Attempt(n, 1.0, 0.0, "w", "E", "x" * 500, "k", "r"))
    heavy = envelope(headers={**envelope().headers, "x": "h" * 111_000})
    letter = DeadLetter.write(Reason.PERMANENT, heavy, error=facts, history=history)
    read = DeadLetter.from_envelope(on_the_wire(letter.to_envelope()))
    assert len(read.error.message) < len(facts.message), "it was cut"
    for text in (facts.traceback, read.error.traceback):
        assert "in fail" in text
    assert "in fail_deep_inside" in facts.traceback
    assert "direct cause" in facts.traceback
    assert "KeyError: 'no no" in facts.traceback


def test_own_frame_is_none_of_a_library_s():
    """Neither of the standard library's, in which all tasks would die alike."""
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    own = f"{__name__}.test_own_frame_is_none_of_a_library_s"
    assert ErrorRecord.of(caught.value).frame == own
    facts = ErrorRecord.of(caught.value, with_traceback=False)
    assert (facts.frame, facts.traceback) == (own, ""), "a retry belongs to a group as well"


def test_installed_application_has_own_frames_too(tmp_path):
    library, shop = tmp_path / "site-packages" / "http.py", tmp_path / "site-packages" / "shop.py"
    names = {"__name__": "http_library.pool"}
    exec(compile("def get(): raise OSError", library, "exec"), names)
    body = {"__name__": "shop.tasks", "get": names["get"]}
    exec(compile("def fetch(): get()\ndef charge(): fetch()", shop, "exec"), body)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        body["charge"]()
    traceback = caught.value.__traceback__
    assert traceback is not None
    outside = caught.value.with_traceback(traceback.tb_next)  # where a worker would be
    assert ErrorRecord.of(outside).frame == "shop.tasks.fetch"


def test_traceback_is_what_python_prints():
    def fail() -> None:
        try:
            raise ValueError("first")
        except ValueError:
            raise KeyError("second")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        fail()
    printed = "".join(traceback.format_exception(caught.value))
    assert ErrorRecord.of(caught.value).traceback == printed


def test_text_of_a_letter_travels_as_utf_8():
    error = ErrorRecord("E", "잔액 부족 " * 200, traceback="줄 " * 1000)
    sent = DeadLetter.write(Reason.PERMANENT, envelope(), error=error).to_envelope()
    header = sent.headers[HEADER]
    assert "잔액" in header
    assert len(header.encode()) < 10_000
    assert DeadLetter.from_envelope(on_the_wire(sent)).error == error


def test_lone_surrogate_is_escaped():
    """UTF-8 can't say it, and a broker's client would refuse it."""
    error = ErrorRecord("E", "잔\udc80")
    sent = DeadLetter.write(Reason.PERMANENT, envelope(), error=error).to_envelope()
    sent.headers[HEADER].encode()
    assert DeadLetter.from_envelope(sent).error == error


# What makes a letter this one


def put_there(**changes) -> Envelope:
    """As RabbitMQ dead-letters a message by itself."""
    deaths = [{"count": 1, "reason": "rejected", "queue": "shop", "time": datetime(2026, 3, 1)}]
    headers = {**envelope().headers, "x-death": deaths, **changes.pop("headers", {})}
    message = Namespace(
        body=envelope().body, headers=headers, properties={"priority": 3}, errors=None,
        content_type="application/json", content_encoding="utf-8", delivery_info={}, **changes,
    )  # fmt: skip
    return Envelope.received(message, "dead_letter")


def test_id_is_128_random_bits():
    ids = {DeadLetter.write(Reason.PERMANENT, envelope()).id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in ids)


def test_id_of_before_is_its_id_still():
    old = DeadLetter.write(Reason.PERMANENT, envelope())
    old = replace(old, id="4f3a9c01b2d4")
    assert DeadLetter.from_envelope(on_the_wire(old.to_envelope())).id == "4f3a9c01b2d4"


def test_message_that_the_broker_put_there_is_one_letter_at_every_look():
    first = DeadLetter.from_envelope(put_there())
    assert len(first.id) == 32
    counted = {"x-delivery-count": 3, "x-acquired-count": 4, "redelivered": True}
    assert DeadLetter.from_envelope(put_there(headers=counted)).id == first.id


def test_message_that_died_again_is_another_letter_and_no_ancestor_of_itself():
    first = DeadLetter.from_envelope(put_there())
    again = [{"count": 2, "reason": "rejected", "queue": "shop", "time": datetime(2026, 3, 1)}]
    assert DeadLetter.from_envelope(put_there(headers={"x-death": again})).id != first.id
    replayed = first.replayed().headers[HEADER]
    second = DeadLetter.from_envelope(put_there(headers={HEADER: replayed}))
    assert second.id != first.id
    assert second.history.lineage == (first.id,)


def test_letter_is_not_in_its_own_lineage_whatever_its_header_says():
    text = '{"lineage":["a","me"],"letter":{"id":"me","reason":"permanent"}}'
    assert DeadLetter.from_envelope(envelope().with_header(text)).history.lineage == ("a",)


@pytest.mark.parametrize("facts", ["{}", '{"id":""}', '{"id":null}', '{"id":0}'])
def test_letter_without_an_id_in_its_header_has_its_own(facts):
    text = f'{{"letter":{facts}}}'
    one = DeadLetter.from_envelope(envelope().with_header(text))
    other = DeadLetter.from_envelope(envelope(body=b"[[2], {}, {}]").with_header(text))
    assert len(one.id) == len(other.id) == 32
    assert one.id != other.id


def test_rewritten_letter_is_the_same_letter():
    """Without what the broker has noted on it, and after any number of times."""
    came = put_there()
    letter = DeadLetter.from_envelope(came)
    anew = on_the_wire(written_anew(came))
    assert not anew.deaths
    for again in (anew, on_the_wire(written_anew(anew))):
        read = DeadLetter.from_envelope(again)
        assert (read.id, read.digest, read.reason) == (letter.id, letter.digest, letter.reason)
    assert json.loads(anew.headers[HEADER])["identity"]["deaths"]["x-death"][0]["count"] == 1
    ours = DeadLetter.write(Reason.PERMANENT, envelope()).to_envelope()
    known = DeadLetter.from_envelope(ours)
    again = DeadLetter.from_envelope(on_the_wire(written_anew(ours)))
    assert (again, again.digest) == (known, known.digest)


def test_identity_that_is_about_another_body_is_not_believed():
    anew = written_anew(put_there())
    other = replace(anew, body=b"[[2], {}, {}]")
    assert DeadLetter.from_envelope(other).id != DeadLetter.from_envelope(anew).id


def test_group_is_the_cause_and_a_fingerprint_that_of_one_task():
    error = ErrorRecord("shop.Timeout", "too slow", frame="shop.http.get")
    other = envelope(headers={**envelope().headers, "task": "shop.refund"})
    charge, refund = (
        DeadLetter.write(Reason.EXHAUSTED, message, error=error) for message in (envelope(), other)
    )
    assert charge.group == refund.group
    assert charge.fingerprint != refund.fingerprint
    elsewhere = replace(charge, error=replace(error, frame="shop.db.get"))
    assert charge.group != elsewhere.group
    assert charge.fingerprint.startswith("4bb199da"), "as 0.1.0 has shown it"


# Replaying


def test_replayed_message_is_the_one_received_with_its_retries_back():
    letter = DeadLetter.write(Reason.EXHAUSTED, envelope(), history=History(lineage=("a",)))
    again = letter.replayed()
    headers = dict(again.headers)
    assert History.loads(headers.pop(HEADER)) == History(lineage=("a", letter.id))
    assert headers == {**envelope().headers, "retries": 0}
    assert (again.body, again.properties) == (envelope().body, envelope().properties)


@pytest.mark.parametrize(("offset", "kept"), [(-60, False), (60, True)])
def test_expires_that_has_passed_is_taken_away(offset, kept):
    from datetime import datetime, timezone

    expires = datetime.fromtimestamp(time.time() + offset, timezone.utc).isoformat()
    received = envelope(headers={**envelope().headers, "expires": expires})
    again = DeadLetter.write(Reason.EXPIRED, received).replayed()
    assert again.headers["expires"] == (expires if kept else None)


FIRST = {"task": "shop.charge", "id": "1f3", "args": [1], "kwargs": {}, "retries": 2, "eta": "x"}


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_protocol_1_is_opened_for_a_replay(serializer, compression):
    content_type, encoding, body = dumps(FIRST, serializer=serializer)
    headers = {}
    body = body if isinstance(body, bytes) else body.encode()
    if compression:
        body, headers["compression"] = compress(body, compression)
    received = Envelope(body, content_type, encoding, headers, queue="shop")
    again = DeadLetter.write(Reason.EXHAUSTED, received).replayed()
    assert again.protocol == 1
    assert again.fields() == {**FIRST, "retries": 0, "eta": None}
    assert again.headers.get("compression") == headers.get("compression")


def test_protocol_1_that_needs_no_change_is_not_touched():
    _, _, body = dumps({**FIRST, "retries": 0, "eta": None}, serializer="json")
    received = Envelope(body.encode(), "application/json", "utf-8", {}, queue="shop")
    assert DeadLetter.write(Reason.EXHAUSTED, received).replayed().body == received.body


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pickle_is_never_opened_to_be_shown(compression):
    body, headers = pickle.dumps({"task": Bomb()}), {}
    if compression:
        body, headers["compression"] = compress(body, compression)
    received = Envelope(body, "application/x-python-serialize", "binary", headers, queue="shop")
    letter = DeadLetter.write(Reason.UNDECODABLE, received)
    assert (letter.task, letter.task_id, letter.arguments) == ("", "", "")
    assert letter.fingerprint


def test_letter_with_an_impossible_time_is_still_a_letter() -> None:
    """A number of 400 digits is no time, and no reason to show nothing."""
    text = '{"v":1,"letter":{"id":"x","reason":"permanent","at":' + "9" * 400 + "}}"
    envelope = Envelope(b"", None, None, headers={HEADER: text})
    assert DeadLetter.from_envelope(envelope).at == 0.0


def test_header_whose_name_is_no_text_is_no_obstacle() -> None:
    """py-amqp hands out as bytes what is no UTF-8, and JSON has no such names."""
    headers = {b"\xff": 1, "inner": {b"\xff": 1}}
    message = Envelope(b"[]", None, None, headers=headers, queue="work")  # type: ignore[arg-type]
    letter = DeadLetter.write(Reason.INVALID, message)
    assert DeadLetter.from_envelope(letter.to_envelope()).envelope.headers == headers
    assert DeadLetter.from_envelope(letter.to_envelope(packed=True)).envelope.body == b"[]"
    assert Envelope.from_json(message.to_json()).headers == {"inner": {}}
