"""Settlements of several threads through one broker, and how each try ends."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import bootsteps

from celery_resilience.brokers.base import Delivery, Done, NotOurs, TooLarge, Unroutable
from celery_resilience.messages.envelope import Envelope
from celery_resilience.worker.pending import PendingSettlements, Result, Settlement

ENVELOPE = Envelope(b"", None, None, {})


def over(result: Result, tries: int) -> bool:
    return True


class Broker:
    """While it is checked and hears that a queue has gone, another thread settles."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.checking, self.settling = threading.Event(), threading.Event()
        self.under_way: list[Done] = []

    def check(self) -> None:
        with self.lock:
            self.checking.set()
            self.settling.wait(1)
            self.under_way.pop()(Unroutable("there is no queue jobs"))

    def publish(self, done: Done) -> None:
        self.settling.set()
        with self.lock:
            done(None)


def test_check_and_a_settlement_do_not_wait_for_each_other() -> None:
    """Without an event loop (gevent) a timer checks, and each task settles for itself."""
    broker: Any = Broker()
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    pending.use(broker)
    settled: list[str] = []

    def settlement(name: str) -> Settlement:
        delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: settled.append(name))
        return Settlement(delivery, broker.publish, over)

    def write_letter(result: Result, tries: int) -> bool:
        assert result is Result.UNROUTABLE
        pending.start(settlement("its letter"))
        return True

    first = settlement("its retry")
    first.begin, first.ended = broker.under_way.append, write_letter
    pending.start(first)
    check = threading.Thread(target=pending.check, daemon=True)
    check.start()
    assert broker.checking.wait(5)
    other = threading.Thread(target=lambda: pending.start(settlement("another")), daemon=True)
    other.start()
    check.join(5)
    other.join(5)
    assert sorted(settled) == ["another", "its letter"]


def test_thread_of_the_pool_does_not_wait_for_the_loop() -> None:
    """A cold shutdown interrupts the loop, wherever it is, and waits for the pool's threads."""
    settled: list[str] = []
    ended = threading.Event()

    def pool_thread() -> None:
        delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: settled.append("its retry"))
        pending.start(Settlement(delivery, lambda done: done(None), over))
        ended.set()

    class Interrupted:
        def check(self) -> None:
            threading.Thread(target=pool_thread, daemon=True).start()
            assert ended.wait(5)

        def flush(self, timeout: float) -> None:
            pass

        def close(self) -> None:
            pass

    broker: Any = Interrupted()
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=bootsteps.RUN)))  # type: ignore[attr-defined]
    pending.use(broker)
    pending.loop.watch(SimpleNamespace(add_reader=lambda fd, callback: None))
    pending.check()
    pending.drain(1)
    pending.close()
    assert settled == ["its retry"]


@pytest.mark.parametrize(
    ("problem", "result"),
    [
        (None, Result.DONE),
        (NotOurs("x"), Result.NOT_OURS),
        (Unroutable("x"), Result.UNROUTABLE),
        (TooLarge("x"), Result.TOO_LARGE),
        (ConnectionError("x"), Result.FAILED),
    ],
)
def test_result_says_what_a_broker_has_answered(
    problem: BaseException | None, result: Result
) -> None:
    assert Result.of(problem) is result


@pytest.mark.parametrize(
    ("problem", "is_over", "pending_after", "acked", "left"),
    [
        (None, False, 0, True, False),
        (None, True, 0, True, False),
        (NotOurs("x"), False, 0, False, True),
        (Unroutable("x"), True, 0, False, False),
        (Unroutable("x"), False, 1, False, False),
        (TooLarge("x"), True, 0, False, False),
        (TooLarge("x"), False, 1, False, False),
        (ConnectionError("x"), False, 1, False, False),
    ],
)
def test_settlement_is_kept_until_it_is_over(
    problem: BaseException | None, is_over: bool, pending_after: int, acked: bool, left: bool
) -> None:
    """Only what is done is acknowledged, and only what is not ours may be taken up again."""
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    acks: list[bool] = []
    told: list[Any] = []
    answers = [problem]
    delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: acks.append(True))

    def ended(result: Result, tries: int) -> bool:
        told.append((result, tries))
        return is_over

    def begin(done: Done) -> None:
        done(answers.pop() if answers else None)

    pending.start(Settlement(delivery, begin, ended))
    assert told == [(Result.of(problem), 1)]
    assert (pending.unfinished, pending.failing) == (pending_after, pending_after)
    assert bool(acks) is acked
    pending.drain(0)
    assert bool(acks) is (acked or bool(pending_after))
    assert pending.take_up(delivery.message) is left
    assert pending.unfinished == 0


def test_settlements_that_are_not_ours_are_all_taken_up_again() -> None:
    """A connection may be lost while hundreds of greenlets run."""
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    tries: list[int] = []

    def begin(done: Done) -> None:
        done(NotOurs("x") if len(tries) < 500 else None)

    def ended(result: Result, number: int) -> bool:
        tries.append(number)
        return True

    messages = [SimpleNamespace() for _ in range(500)]
    for message in messages:
        pending.start(Settlement(Delivery(message, ENVELOPE, list), begin, ended))
    assert all(pending.take_up(message) for message in messages)
    assert len(tries) == 1000
    assert not any(pending.take_up(message) for message in messages)


def test_copy_that_is_there_is_acknowledged_though_a_listener_raises() -> None:
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    acks: list[bool] = []

    def ended(result: Result, number: int) -> bool:
        raise ValueError("a listener's")

    delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: acks.append(True))
    pending.start(Settlement(delivery, lambda done: done(None), ended))
    assert acks == [True]


@pytest.mark.parametrize("where", ["begin", "ended"])
def test_settlement_goes_on_though_its_greenlet_is_out_of_time(where: str) -> None:
    """gevent's Timeout is no Exception."""

    class Timeout(BaseException):
        pass

    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    acks: list[bool] = []
    late = [True]

    def out_of_time(step: str) -> None:
        if step == where and late:
            late.clear()
            raise Timeout

    def begin(done: Done) -> None:
        out_of_time("begin")
        done(ConnectionError("away") if late else None)

    def ended(result: Result, number: int) -> bool:
        out_of_time("ended")
        return False

    delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: acks.append(True))
    with pytest.raises(Timeout):
        pending.start(Settlement(delivery, begin, ended))
    assert (acks, pending.failing) == ([], 1)
    pending.use(SimpleNamespace())  # type: ignore[arg-type]
    assert (acks, pending.unfinished) == ([True], 0)


def test_settlement_that_failed_goes_on_though_a_listener_raises() -> None:
    """Unacknowledged, and forgotten here, its message would wait for the end of this worker."""
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    acks: list[bool] = []
    problems: list[Exception | None] = [None, Unroutable("there is no queue jobs")]

    def ended(result: Result, number: int) -> bool:
        raise ValueError("a listener's")

    delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: acks.append(True))
    pending.start(Settlement(delivery, lambda done: done(problems.pop()), ended))
    assert (acks, pending.failing) == ([], 1)
    pending.use(SimpleNamespace())  # type: ignore[arg-type]
    assert (acks, pending.unfinished) == ([True], 0)


def test_settlement_that_fails_is_logged_once_for_all_messages(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    away = ConnectionError("away")
    for number in range(3):
        delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: None, subject=f"t[{number}]")
        pending.start(Settlement(delivery, lambda done: done(away), lambda result, tries: False))
    assert caplog.text.count("settlement failed (ConnectionError: away)") == 1
    assert pending.failing == 3
