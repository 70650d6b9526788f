"""Moves of several threads through one broker."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from celery import bootsteps

from celery_resilience.brokers.base import Delivery, Done, Unroutable
from celery_resilience.messages.envelope import Envelope
from celery_resilience.worker.pending import PendingSettlements, Settlement

ENVELOPE = Envelope(b"", None, None, {})


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


def test_a_check_and_a_settlement_do_not_wait_for_each_other() -> None:
    """Without an event loop (gevent) a timer checks, and each task settles for itself."""
    broker: Any = Broker()
    pending = PendingSettlements(SimpleNamespace(blueprint=SimpleNamespace(state=None)))
    pending.use(broker)
    settled: list[str] = []

    def move(name: str) -> Settlement:
        delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: settled.append(name))
        return Settlement(delivery, broker.publish, name)

    first = move("its retry")
    first.begin = broker.under_way.append
    first.unroutable = lambda: pending.start(move("its letter"))
    pending.start(first)
    check = threading.Thread(target=pending.check, daemon=True)
    check.start()
    assert broker.checking.wait(5)
    other = threading.Thread(target=lambda: pending.start(move("another")), daemon=True)
    other.start()
    check.join(5)
    other.join(5)
    assert sorted(settled) == ["another", "its letter"]


def test_a_thread_of_the_pool_does_not_wait_for_the_loop() -> None:
    """A cold shutdown interrupts the loop, wherever it is, and waits for the pool's threads."""
    settled: list[str] = []
    ended = threading.Event()

    def pool_thread() -> None:
        delivery = Delivery(SimpleNamespace(), ENVELOPE, lambda: settled.append("its retry"))
        pending.start(Settlement(delivery, lambda done: done(None), "its retry"))
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
    pending.watch(SimpleNamespace(add_reader=lambda fd, callback: None))
    pending.check()
    pending.drain(1)
    pending.close()
    assert settled == ["its retry"]
