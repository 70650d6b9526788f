"""A redelivered message whose turn has come, while another one runs in isolation.

The worker and its broker are stubs: which of two messages arrives first can't be had on demand.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.worker import isolated_runs, redelivery


@pytest.fixture(autouse=True)
def no_request_stays_reserved() -> Iterator[None]:
    """A request holds itself, and would be seen by later tests until it is collected."""
    yield
    state.reserved_requests.clear()


class Settler:
    """Its broker writes down every start; what is put back is in ``back``."""

    def __init__(self, limit: int) -> None:
        self.settings = SimpleNamespace(max_worker_losses=limit)
        self.pending = SimpleNamespace(
            broker=SimpleNamespace(record_start=lambda *told: True), loop=SimpleNamespace()
        )
        self.back: list[History] = []

    def schedule(self, delivery: Any, copy: Envelope, delay: float, **told: Any) -> None:
        self.back.append(History.loads(copy.headers.get(HEADER)))


class Request:
    acknowledged = _settled = False
    time_start = eta = None
    name, _hostname, _task, _app = "t", "w@1", None, None

    def __init__(self, id_: str, starts: int) -> None:
        self.id = id_
        headers = {HEADER: History(crash_redeliveries=starts).dumps()} if starts else {}
        self.envelope = Envelope(b"", None, None, headers=headers, queue="shop")
        self._message = SimpleNamespace(
            channel=None, headers=headers, delivery_info={"redelivered": True}
        )
        self.started = False
        state.requests[id_] = self

    def revoked(self) -> bool:
        return False

    def delivery(self, settler: Settler) -> Any:
        return SimpleNamespace(envelope=self.envelope)

    def detach(self) -> None:
        self._settled = True

    def execute_using_pool(self, pool: Any) -> None:
        self.started = True


@pytest.mark.parametrize(("limit", "counted"), [(2, 0), (3, 1), (4, 1)])
def test_wait_for_an_isolated_run_is_counted_but_makes_no_letter(
    monkeypatch: pytest.MonkeyPatch, limit: int, counted: int
) -> None:
    settler = Settler(limit)
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(state, "requests", {})
    alone, first = Request("alone", starts=1), Request("first", starts=0)
    for request in (alone, first):
        redelivery.watch_start(request)
    redelivery._runs_of(settler).start(alone, isolated=True)  # type: ignore[arg-type]
    with pytest.raises(TaskRevokedError):
        first.execute_using_pool(None)
    assert not first.started
    assert [history.crash_redeliveries for history in settler.back] == [counted]


def test_first_redelivery_starts_beside_other_first_redeliveries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settler = Settler(3)
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(state, "requests", {})
    both = [Request(name, starts=0) for name in ("one", "other")]
    for request in both:
        redelivery.watch_start(request)
        request.execute_using_pool(None)
    assert all(request.started for request in both)
    assert settler.back == []


def test_counted_redelivery_does_not_wait_in_the_workers_hands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But one that waits for its eta does: put back, it would be run too early."""
    settler, calls = Settler(3), []
    settler.pending.broker = SimpleNamespace()
    settler.pending.loop.call_after = lambda delay, call, *args: calls.append((call, args))
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(state, "requests", {})
    alone, waits, later = (Request(name, starts=1) for name in ("alone", "waits", "later"))
    redelivery._runs_of(settler).start(alone, isolated=True)  # type: ignore[arg-type]
    for request in (waits, later):
        redelivery.watch_start(request)
    state.task_reserved(waits)
    for call, args in calls:
        call(*args)
    assert [history.crash_redeliveries for history in settler.back] == [2]
    assert (waits._settled, later._settled) == (True, False)
    waits.acknowledged = True  # its copy is there
    with pytest.raises(TaskRevokedError):  # the slot that it has waited for is free again
        waits.execute_using_pool(None)
    assert not waits.started


def test_start_that_can_not_be_recorded_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says nothing about the message, and its place in the pool is kept."""
    settler, again = Settler(3), []
    answers: list[Any] = [OSError("the broker refuses"), True]

    def record_start(*told: Any) -> Any:
        answer = answers.pop(0)
        if answer is not True:
            raise answer
        return answer

    settler.pending.broker.record_start = record_start
    settler.pending.loop.start_again = lambda request, delay: again.append(request)
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(state, "requests", {})
    request = Request("one", starts=0)
    state.task_reserved(request)
    redelivery.watch_start(request)
    request.execute_using_pool(None)
    assert (again, request.started, request._settled) == ([request], False, False)
    assert request not in state.reserved_requests, "after a reconnection it is nobody's"
    request.execute_using_pool(None)
    assert request.started
    assert request in state.reserved_requests


def test_start_of_a_message_that_another_worker_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settler = Settler(3)
    settler.pending.broker.record_start = lambda *told: False
    ended: list[Any] = []
    settler.outcomes = SimpleNamespace(tell=lambda kind, delivery: ended.append(kind))  # type: ignore[attr-defined]
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(state, "requests", {})
    request = Request("one", starts=1)
    state.task_reserved(request)
    redelivery.watch_start(request)
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(None)
    assert (request.started, ended) == (False, [OutcomeKind.NOT_OURS])
    assert request not in state.reserved_requests


@pytest.mark.parametrize(("unfinished", "waits"), [(0, 0.2), (1, 5.0)])
def test_isolated_run_waits_until_what_came_with_it_is_requeued(
    monkeypatch: pytest.MonkeyPatch, unfinished: int, waits: float
) -> None:
    """Where redeliveries are counted: a moment, or as long as those settlements take."""
    settler, again, now = Settler(3), [], [100.0]
    settler.pending.broker = SimpleNamespace()
    settler.pending.unfinished = unfinished
    settler.pending.loop.call_after = lambda *told: None
    settler.pending.loop.start_again = lambda request, delay: again.append(request)
    monkeypatch.setattr(redelivery, "settler_of", lambda app: settler)
    monkeypatch.setattr(isolated_runs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(state, "requests", {})
    monkeypatch.setattr(state, "reserved_requests", set())
    isolated, other = Request("isolated", starts=2), Request("other", starts=0)
    isolated._message.delivery_info = {}
    for request in (isolated, other):
        redelivery.watch_start(request)
        state.reserved_requests.add(request)
    isolated.execute_using_pool(None)
    assert (again, isolated.started, other._settled) == ([isolated], False, True)
    assert [history.crash_redeliveries for history in settler.back] == [1]
    now[0] += waits - 0.01
    isolated.execute_using_pool(None)
    assert not isolated.started
    now[0] += 0.02
    isolated.execute_using_pool(None)
    assert isolated.started
