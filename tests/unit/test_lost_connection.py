"""What is delivered again after the loss of a connection; the worker and its broker are stubs."""

from __future__ import annotations

import logging
import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery.utils.collections import LimitedSet
from celery.worker import state
from kombu.message import Message as KombuMessage

from celery_resilience.brokers.base import Delivery, NotOurs
from celery_resilience.brokers.rabbitmq.pyamqp import _closes
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.worker import lost_connection, peers
from celery_resilience.worker.lost_connection import InHand
from celery_resilience.worker.peers import Answer, name_of
from celery_resilience.worker.pending import Settlement


class Message(SimpleNamespace):
    acknowledged = False

    def ack_log_error(self, *told: Any) -> None:
        self.acknowledged = True


def message(
    id_: str = "1", retries: int = 0, redelivered: bool = True, history: History | None = None,
    arguments: str = "()",
) -> Message:  # fmt: skip
    headers = {"id": id_, "retries": retries, "argsrepr": arguments}
    if history is not None:
        headers[HEADER] = history.dumps()
    return Message(
        headers=headers, channel=SimpleNamespace(is_open=True), delivery_tag=object(),
        delivery_info={"redelivered": redelivered}, _state="RECEIVED",
    )  # fmt: skip


class Request(SimpleNamespace):
    acknowledged = _settled = _already_cancelled = _rejected = False
    time_start = 1.0
    _apply_result: Any = None
    id = name = "1"
    _app = SimpleNamespace

    def detach(self) -> None: ...

    __hash__ = object.__hash__  # type: ignore[assignment]


class PendingSettlements:
    def __init__(self) -> None:
        self.taken_up: list[Any] = []

    def take_up(self, message: Any) -> bool:
        self.taken_up.append(message)
        return False


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> tuple[InHand, Request, Any]:
    """A worker whose body runs, and whose connection is lost."""
    request = Request(_message=message(redelivered=False))
    monkeypatch.setattr(state, "active_requests", {request})
    monkeypatch.setattr(state, "reserved_requests", set())
    consumer = SimpleNamespace(
        pool=SimpleNamespace(), task_buckets={}, timer=SimpleNamespace(queue=[]),
        connection_errors=(), call_soon=lambda call, *args: call(*args),
    )  # fmt: skip
    hand: Any = InHand(PendingSettlements())  # type: ignore[arg-type]
    request._message.channel.is_open = False
    hand.lose(consumer)
    return hand, request, consumer


def test_running_body_takes_over_the_new_delivery(lost: tuple[Any, Any, Any]) -> None:
    hand, request, consumer = lost
    again = message()
    again.take = 7
    assert hand.take_back(again, consumer)
    assert request._message.delivery_tag is again.delivery_tag
    assert request._message.take == 7
    assert not again.acknowledged
    assert not hand.take_back(message(), consumer), "a second message with the same id is its own"


@pytest.mark.parametrize("losses", [1, 3])
def test_running_body_takes_over_once_for_each_loss(
    lost: tuple[Any, Any, Any], losses: int
) -> None:
    hand, request, consumer = lost
    for _ in range(losses):
        assert hand.take_back(message(), consumer)
        request._message.channel.is_open = False
        hand.lose(consumer)


def test_request_that_never_had_the_pool_does_not_run(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its turn, or for the result store's answer: Celery has forgotten it."""
    hand, _, consumer = lost
    for id_, given in (("waits", None), ("in the pool", object())):
        request = Request(_message=message(id_), id=id_, _apply_result=given)
        request._message.channel.is_open = False
        monkeypatch.setattr(state, "reserved_requests", {request})
        hand.lose(consumer)
        assert hand.take_back(message(id_), consumer) is (given is not None)


def test_finished_task_is_acked_each_time_that_it_comes(lost: tuple[Any, Any, Any]) -> None:
    """The acknowledgement of the last time may be lost with its connection as well."""
    hand, request, consumer = lost
    request.acknowledged = True
    for _ in range(3):
        assert hand.take_back(message(), consumer)
        assert request._message.acknowledged
        request._message.acknowledged = request._message.channel.is_open = False
        hand.lose(consumer)


def test_success_just_before_a_loss_is_told(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was acknowledged on a connection that had gone; another message with its id was not."""
    hand, _, consumer = lost
    monkeypatch.setattr(state, "successful_requests", LimitedSet(maxlen=10))
    state.successful_requests.add("now")
    state.successful_requests.add("long ago", now=time.monotonic() - 61)
    for id_ in ("now", "long ago", "not a success"):
        peers.note_acknowledged(message(id_))
    peers.note_acknowledged(Message(headers=None))
    hand.lose(consumer)
    now = name_of(message("now"))
    assert now is not None
    assert hand.tell(now, 0) is Answer.DONE
    others = [
        message("now", history=History(lineage=("a letter",))),
        message("now", arguments="('other arguments',)"),
        message("long ago"),
        message("not a success"),
    ]
    assert [hand.tell(name_of(other), 0) for other in others] == [Answer.NOTHING] * 4


def test_acknowledgement_on_its_way_to_the_loop_comes_before_or_after_the_one_for_the_new_delivery(
    lost: tuple[Any, Any, Any],
) -> None:
    """kombu's loop keeps no order; a second one would end the worker."""
    hand, request, consumer = lost
    channel = SimpleNamespace(is_open=False, no_ack_consumers=None, connection=None)
    ours = KombuMessage(headers=request._message.headers, channel=channel, delivery_tag=1)
    request._message, request.acknowledged = ours, True
    on_its_way, acked = ours.ack_log_error, []
    consumer.call_soon = lambda call, *args: (call(*args), on_its_way(logging.getLogger(), ()))
    again = message()
    again.channel.basic_ack = lambda tag, multiple: acked.append(tag)
    again.channel.no_ack_consumers = None
    assert hand.take_back(again, consumer)
    assert acked == [again.delivery_tag]


def test_finished_task_is_acked(lost: tuple[Any, Any, Any]) -> None:
    hand, request, consumer = lost
    request.acknowledged = True
    assert hand.take_back(message(), consumer)
    assert request._message.acknowledged


def test_request_is_unsettled_until_its_message_is_acknowledged(lost: tuple[Any, Any, Any]) -> None:
    """What becomes of it may just be decided: its message must not be requeued meanwhile."""
    hand, request, _ = lost
    assert hand.unsettled() == [request]
    request._settled = True
    assert hand.unsettled() == [request]
    request.acknowledged = True
    assert hand.unsettled() == []
    request.acknowledged, request._message.acknowledged = False, True
    assert hand.unsettled() == []


def test_request_whose_end_is_being_decided_settles_the_new_delivery(
    lost: tuple[Any, Any, Any],
) -> None:
    """Its process has died, and the result store is asked whether it had succeeded."""
    hand, _, consumer = lost
    request = Request(_message=message("asked for"), id="asked for")
    state.active_requests.add(request)  # type: ignore[attr-defined]
    request._message.channel.is_open = False
    request._settled = True
    hand.lose(consumer)
    again = message("asked for")
    assert hand.take_back(again, consumer)
    assert request._message.delivery_tag is again.delivery_tag
    assert not again.acknowledged


def test_rejected_task_comes_again(lost: tuple[Any, Any, Any]) -> None:
    hand, request, consumer = lost
    request.acknowledged = request._rejected = True
    assert not hand.take_back(message(), consumer)


def test_settlement_that_came_to_nothing_is_begun_again(lost: tuple[Any, Any, Any]) -> None:
    hand, request, consumer = lost
    request._settled = True
    assert hand.take_back(message(), consumer)
    assert hand._pending.taken_up == [request._message]
    assert not request._message.acknowledged


@pytest.mark.parametrize(
    ("other", "ours"),
    [
        (message(redelivered=False), False),
        (message(id_="2"), False),
        (message(retries=1), False),
        (message(history=History(lineage=("a letter",))), False),
        (message(history=History().add(Attempt(1, 0.0, 0.0, "w", "E", "m", "k", "r"))), False),
        # Another worker had it meanwhile and has published it anew.
        (message(redelivered=False, history=History(crash_redeliveries=1)), True),
    ],
)
def test_another_attempt_is_another(lost: tuple[Any, Any, Any], other: Any, ours: bool) -> None:
    hand, _, consumer = lost
    assert hand.take_back(other, consumer) is ours


def test_redelivery_of_what_had_not_started_is_not_counted(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery_resilience.worker.redelivery import _was_redelivered

    hand, _, consumer = lost
    waits = Request(_message=message("waits"), time_start=None)
    waits._message.channel.is_open = False
    monkeypatch.setattr(state, "scheduled_requests", {waits}, raising=False)
    hand.lose(consumer)
    again = message("waits")
    assert _was_redelivered(again)
    assert not hand.take_back(again, consumer)
    assert not _was_redelivered(again)


@pytest.mark.parametrize("headers", [None, 3, [], {"id": []}, {"id": {}}, {}])
def test_name_of_what_is_no_task_is_none(headers: Any) -> None:
    assert name_of(SimpleNamespace(headers=headers, payload=b"x")) is None


def test_settlement_that_came_to_nothing_is_kept() -> None:
    from celery_resilience.worker.pending import PendingSettlements as RealPending

    pending = RealPending(SimpleNamespace(blueprint=SimpleNamespace(state=0)))
    answers: list[Any] = [NotOurs("its channel is closed"), None]
    delivery = Delivery(message(), Envelope(b"", None, None, headers={}, queue="q"), ack=list)
    pending.start(Settlement(delivery, lambda done: done(answers.pop(0)), lambda *told: True))
    assert len(answers) == 1
    assert pending.take_up(delivery.message)
    assert answers == []
    assert not pending.take_up(delivery.message)


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


@pytest.mark.parametrize(
    ("frames", "closes"),
    [
        (b"", False),
        (frame(8, 0, b""), False),
        (frame(1, 0, b"\x00\x0a\x00\x32rest"), True),
        (frame(1, 1, b"\x00\x14\x00\x28rest"), True),
        (frame(1, 2, b"\x00\x14\x00\x28rest"), False),
        (frame(3, 1, b"\x00\x0a\x00\x32") + frame(1, 0, b"\x00\x0a\x00\x32rest"), True),
        (frame(3, 1, b"a body" * 99)[:100], False),
        (b"half of something " * 9, False),
    ],
)
def test_close_that_nobody_has_read(frames: bytes, closes: bool) -> None:
    assert _closes(frames, 1) is closes


def test_answer_tells_another_worker_what_runs_here(lost: tuple[Any, Any, Any]) -> None:
    hand, request, _ = lost
    name = name_of(request._message)
    assert name is not None
    assert [hand.tell(name, 0), hand.tell(name, 0)] == [Answer.RUNS] * 2
    assert hand.tell(name._replace(retries=1), 0) is Answer.NOTHING
    request.acknowledged = True
    assert [hand.tell(name, 0), hand.tell(name, 0)] == [Answer.DONE] * 2


@pytest.fixture
def asked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer is for another redelivery: the last one was given long ago."""
    monkeypatch.setattr(lost_connection, "_REPEATED", 0.0)


def test_answer_is_repeated_to_those_that_could_not_act_on_it(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own connection was lost before they had published what follows."""
    hand, request, _ = lost
    request._settled = True
    name = name_of(request._message)
    assert name is not None
    assert [hand.tell(name, 60) for _ in range(3)] == [Answer.HAD] * 3
    passed = time.monotonic() + 30.5
    monkeypatch.setattr(lost_connection.time, "monotonic", lambda: passed)
    assert hand.tell(name, 60) is Answer.NOTHING, "the answers before count from the first"


@pytest.mark.usefixtures("asked_later")
@pytest.mark.parametrize("losses", [1, 3])
def test_answer_excuses_any_message_once_for_each_loss(
    lost: tuple[Any, Any, Any], losses: int
) -> None:
    """RabbitMQ may have delivered it here, unread. It has not killed this worker, but it may kill
    others: not for ever."""
    hand, request, consumer = lost
    request._settled = True  # its body has failed: only this worker can tell what becomes of it
    known, unread = name_of(request._message), name_of(message("not read"))
    assert known is not None
    assert unread is not None
    for _ in range(losses - 1):
        hand.lose(consumer)
    for name in (known, unread):
        assert [hand.tell(name, 60) for _ in range(losses)] == [Answer.HAD] * losses
        assert hand.tell(name, 60) is Answer.NOTHING


@pytest.mark.usefixtures("asked_later")
def test_answer_excuses_for_losses_since_the_message_was_first_counted(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, _, consumer = lost
    name = name_of(message("not read"))
    assert name is not None
    later = time.monotonic() + 100
    monkeypatch.setattr(lost_connection.time, "monotonic", lambda: later)
    assert hand.tell(name, 50) is Answer.NOTHING
    hand.lose(consumer)
    assert [hand.tell(name, 50), hand.tell(name, 50)] == [Answer.HAD, Answer.NOTHING]
    assert [hand.tell(name, 150), hand.tell(name, 150)] == [Answer.HAD, Answer.NOTHING]
    later += 100
    hand.lose(consumer)
    assert hand.tell(name, 50) is Answer.HAD, "what was excused before was for other losses"


@pytest.mark.usefixtures("asked_later")
def test_loss_that_was_excused_here_excuses_nothing_elsewhere(lost: tuple[Any, Any, Any]) -> None:
    """The message came back to the worker that had it, and then goes to another one."""
    hand, request, consumer = lost
    assert hand.take_back(message(), consumer)
    request._settled = True
    name = name_of(request._message)
    assert name is not None
    assert hand.tell(name, 60) is Answer.NOTHING
    hand.lose(consumer)
    assert [hand.tell(name, 60), hand.tell(name, 60)] == [Answer.HAD, Answer.NOTHING]


@pytest.mark.usefixtures("asked_later")
def test_loss_that_is_not_noticed_yet_excuses_what_is_held(
    lost: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, _, consumer = lost
    held = Request(_message=message("held", redelivered=False), id="held")
    name = name_of(held._message)
    assert name is not None
    monkeypatch.setattr(state, "reserved_requests", {held})
    # Of the loss before, too.
    assert [hand.tell(name, 60) for _ in range(3)] == [Answer.HAD, Answer.HAD, Answer.NOTHING]
    hand.lose(consumer)  # that is the one
    monkeypatch.setattr(state, "reserved_requests", set())
    assert hand.tell(name, 60) is Answer.NOTHING


def test_question_says_how_long_ago_a_message_was_first_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[Any] = []
    panel = SimpleNamespace(app=None)

    def tell(name: peers.Name, age: float) -> Answer:
        heard.append((name.id, age))
        return Answer.HAD

    monkeypatch.setattr(peers, "settler_of", lambda app: "ours")
    monkeypatch.setattr(peers, "_answering", {"ours": tell})
    asked = [["1", 0, 0, [], ""], ["2", 0, 0, [], ""]]
    assert peers._in_hand(panel, asked, ages=[3.0, 0.0]) == ["had", "had"]
    assert heard == [("1", 3.0), ("2", 0.0)]
