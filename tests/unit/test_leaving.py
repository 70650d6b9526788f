"""What a worker puts back at its end, while other settlements wait for their next try.

The worker is a stub: a broker that goes away between two messages can't be had on demand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Queue

from celery_resilience import leaving

QUEUES = {"shop": Queue("shop"), "bcast.1": Queue("bcast.1", auto_delete=True)}
APP = SimpleNamespace(amqp=SimpleNamespace(queues=QUEUES))


def a_request(queue: str) -> Any:
    return SimpleNamespace(
        _app=APP, acknowledged=False, _settled=False, time_start=None,
        _message=SimpleNamespace(queue=queue),
    )  # fmt: skip


@pytest.fixture
def back(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that were handed back."""
    back: list[Any] = []
    monkeypatch.setattr(leaving, "hand_back", lambda request, *rest: back.append(request))
    monkeypatch.setattr(leaving, "queue_of", lambda message, app: message.queue)
    return back


def test_a_settlement_that_has_failed_before_is_not_in_the_way(back: list[Any]) -> None:
    settler: Any = SimpleNamespace(moves=SimpleNamespace(failing=1))
    requests = [a_request("shop") for _ in range(3)]
    leaving.put_back(requests, settler)
    assert back == requests


def test_the_first_that_fails_is_the_last_that_is_tried(back: list[Any]) -> None:
    class Moves:
        @property
        def failing(self) -> int:
            return len(back)  # each hand-back fails

    settler: Any = SimpleNamespace(moves=Moves())
    leaving.put_back([a_request("shop") for _ in range(3)], settler)
    assert len(back) == 1


def test_a_broadcast_goes_with_its_queue(back: list[Any]) -> None:
    settler: Any = SimpleNamespace(moves=SimpleNamespace(failing=0))
    leaving.put_back([a_request("bcast.1")], settler)
    assert back == []
