"""What a worker requeues at its end, while other settlements wait for their next try.

The worker is a stub: a broker that goes away between two messages can't be had on demand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.worker import state
from kombu import Queue

from celery_resilience.worker import shutdown
from celery_resilience.worker.unprocessable import UnprocessableMessages

QUEUES = {"shop": Queue("shop"), "bcast.1": Queue("bcast.1", auto_delete=True)}
APP = SimpleNamespace(amqp=SimpleNamespace(queues=QUEUES))


class ASettler:
    """One that can be a key, as the real one can."""

    def __init__(self, pending: Any) -> None:
        self.pending = pending


def a_settler(pending: Any = None, failing: int = 0) -> Any:
    if pending is None:
        pending = SimpleNamespace(failing=failing, drained=[])
        pending.drain = pending.drained.append
    return ASettler(pending)


def a_request(queue: str) -> Any:
    return SimpleNamespace(
        _app=APP, acknowledged=False, _settled=False, time_start=None,
        _message=SimpleNamespace(queue=queue),
    )  # fmt: skip


@pytest.fixture
def back(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that were requeued."""
    back: list[Any] = []
    monkeypatch.setattr(shutdown, "requeue_counted", lambda request, *rest: back.append(request))
    monkeypatch.setattr(shutdown, "queue_of", lambda message, app: message.queue)
    return back


def test_requeue_is_not_stopped_by_an_earlier_failure(back: list[Any]) -> None:
    settler = a_settler(failing=1)
    requests = [a_request("shop") for _ in range(3)]
    shutdown.Unstarted(settler)._requeue(requests)
    assert back == requests


def test_requeue_ends_with_the_first_failure(back: list[Any]) -> None:
    class PendingSettlements:
        @property
        def failing(self) -> int:
            return len(back)  # each requeue fails

    settler = a_settler(PendingSettlements())
    shutdown.Unstarted(settler)._requeue([a_request("shop") for _ in range(3)])
    assert len(back) == 1


def test_broadcast_goes_with_its_queue(back: list[Any]) -> None:
    settler = a_settler()
    shutdown.Unstarted(settler)._requeue([a_request("bcast.1")])
    assert back == []


def test_confirms_are_read_on_the_way(back: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ stops when nobody reads what it says, and what it has then is there twice."""
    monkeypatch.setattr(shutdown, "_AT_ONCE", 10)
    settler = a_settler()
    shutdown.Unstarted(settler)._requeue([a_request("shop") for _ in range(35)])
    assert len(back) == 35
    assert len(settler.pending.drained) == 3


def test_requeue_has_a_budget_and_leaves_the_rest_to_rabbitmq(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All calls of one worker together: who stops it does not wait for ever."""
    now, back = [0.0], []

    def requeue_counted(request: Any, *rest: Any) -> None:
        now[0] += 1.0
        back.append(request)

    monkeypatch.setattr(shutdown, "requeue_counted", requeue_counted)
    monkeypatch.setattr(shutdown, "queue_of", lambda message, app: message.queue)
    monkeypatch.setattr(shutdown.time, "monotonic", lambda: now[0])
    settler = a_settler()
    unstarted = shutdown.Unstarted(settler)
    unstarted._requeue([a_request("shop") for _ in range(3)])
    unstarted._requeue([a_request("shop") for _ in range(7)])
    assert len(back) == 5
    assert "5 messages that were not started are left to RabbitMQ" in caplog.text


@pytest.mark.parametrize(
    ("said", "ending", "ended"),
    [
        ("Worker exited prematurely: signal 15 (SIGTERM) Job: 3.", True, True),
        ("Worker exited prematurely: signal 15 (SIGTERM) Job: 3.", False, False),
        ("Worker exited prematurely: signal 3 (SIGQUIT) Job: 3.", True, True),
        ("Worker exited prematurely: exitcode 143 Job: 3.", True, True),
        ("Worker exited prematurely: signal 9 (SIGKILL) Job: 3.", True, False),
        ("Worker exited prematurely: signal 11 (SIGSEGV) Job: 3.", True, False),
        ("Worker exited prematurely: exitcode 1 Job: 3.", True, False),
        ("", True, False),
    ],
)
def test_process_that_ends_with_the_worker_has_not_crashed(
    said: str, ending: bool, ended: bool
) -> None:
    settler: Any = SimpleNamespace(pending=SimpleNamespace(loop=SimpleNamespace(ending=ending)))
    assert shutdown.ended_with_worker(WorkerLostError(said), settler) is ended


def test_failure_in_a_cold_shutdown_that_nobody_has_decided_about_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery's signal handler may raise into any greenlet, and Celery acknowledges that."""
    from celery_resilience.worker.request import ResilientRequest

    back: list[Any] = []
    monkeypatch.setattr(
        "celery_resilience.worker.decide.remember_killed", lambda one, by: back.append(one)
    )
    monkeypatch.setattr(state, "should_terminate", 1)
    settler = SimpleNamespace(
        settings=SimpleNamespace(enabled=True),
        pending=SimpleNamespace(aside=None, loop=SimpleNamespace(ending=True)),
    )
    kind = type("Ours", (ResilientRequest,), {"_resilience_settler": settler, "__init__": object})
    request: Any = object.__new__(kind)
    request.id = request.name = "1"
    request.acknowledged = False
    try:
        raise RuntimeError("dictionary changed size during iteration")
    except RuntimeError:
        request.on_failure(ExceptionInfo())
    assert back == [request]
    assert not request.acknowledged


def test_message_that_comes_when_the_pool_has_ended_is_no_letter() -> None:
    def handle(message: Any) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    c = SimpleNamespace(create_task_handler=lambda: handle, connection_errors=(), app=None)
    pending = SimpleNamespace(loop=SimpleNamespace(ending=True))
    UnprocessableMessages(c, ASettler(pending), in_hand={}).install()  # type: ignore[arg-type]
    message = SimpleNamespace(delivery_info={}, headers={}, channel=None, acknowledged=False)
    assert c.create_task_handler()(message) is None
    assert not message.acknowledged
