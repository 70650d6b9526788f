"""Scheduled retries that are revoked while the result store does not answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_resilience.messages.envelope import Envelope
from celery_resilience.worker import revocation
from celery_resilience.worker import revoked_retries as revoking
from celery_resilience.worker.revocation import _fetch
from celery_resilience.worker.revoked_retries import drop_scheduled


class Backend:
    """A result store that never answers, until the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked = 0

    def as_uri(self) -> str:
        return "redis://"

    def mark_as_revoked(self, *args: Any, **options: Any) -> None:
        self.asked += 1
        self.over.wait(60)

    def get_task_meta(self, *args: Any, **options: Any) -> None:
        self.mark_as_revoked()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    for module in (revoking, revocation):
        monkeypatch.setattr(module, "ANSWER", 0.2)
    made = Backend()
    yield made
    made.over.set()


class Scheduled:
    """A broker in which retries wait."""

    def __init__(self, *ids: str) -> None:
        self.waiting = list(ids)

    def take_scheduled(self, ids: set[str], wanted: object) -> Iterator[Any]:
        for id_ in list(self.waiting):
            self.waiting.remove(id_)
            yield SimpleNamespace(
                envelope=Envelope(
                    b"[[], {}, {}]", "application/json", "utf-8", {"task": "t", "id": id_},
                    {"correlation_id": id_}, queue="work",
                )
            )  # fmt: skip

    def schedule_again(self, found: Any) -> None:
        self.waiting.append(found.envelope.properties["correlation_id"])


def within(seconds: float, call: Any) -> None:
    """Fail where *call* takes longer."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it waits for ever"


def test_revoked_retries_wait_as_before_and_the_store_is_asked_once(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Scheduled("a", "b", "c")
    app = SimpleNamespace(backend=backend, tasks={})
    consumer = SimpleNamespace(app=app, event_dispatcher=None)
    with caplog.at_level(logging.WARNING, "celery_resilience"):
        within(20, lambda: drop_scheduled(consumer, broker, broker.waiting, {}))
    assert sorted(broker.waiting) == ["a", "b", "c"]
    assert backend.asked == 1
    assert caplog.text.count("the result store has not answered for 0.2 s") == 3


def test_log_says_on_rabbitmq_that_it_could_not_be_noted(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settler = SimpleNamespace(pending=SimpleNamespace(broker=object()))
    monkeypatch.setattr(revocation, "settler_of", lambda app: settler)
    with caplog.at_level(logging.WARNING, "celery_resilience"):
        _fetch(SimpleNamespace(app=SimpleNamespace(backend=backend)), {"a"}, {})
        said = "revoked tasks: TimeoutError('the result store has not answered for 0.2 s"
        for _ in range(500):
            if said in caplog.text:
                break
            backend.over.wait(0.02)
    assert said in caplog.text
