"""Whom a worker asks whether a retry was revoked while it waited, and whom it does not."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from celery.worker.control import Panel

from celery_resilience.messages.headers import HEADER
from celery_resilience.worker.revocation import (
    _note_in_backend,
    hear_revocations,
    recall_revocation,
)

WAITED = {"x-death": [{}], HEADER: "{}"}


@pytest.fixture(autouse=True)
def no_request_stays_reserved() -> Iterator[None]:
    """A request holds itself, and would be seen by later tests until it is collected."""
    yield
    state.reserved_requests.clear()


class Backend:
    def __init__(self, url: str = "redis://") -> None:
        self.url = url
        self.asked = 0

    def as_uri(self) -> str:
        return self.url

    def get_task_meta(self, task_id: str, cache: bool) -> Any:
        self.asked += 1
        raise ConnectionError("away")


class Received:
    def __init__(self, backend: Backend, headers: Any, ignore_result: bool) -> None:
        self.id, self.name, self.ignore_result = "revocation-1", "t", ignore_result
        self._message = SimpleNamespace(headers=headers)
        self._task = SimpleNamespace(backend=backend)
        self.ran: list[Any] = []
        self.execute_using_pool: Any = self.ran.append


def received(backend: Backend, headers: Any, ignore_result: bool = False) -> Any:
    return Received(backend, headers, ignore_result)


class Beside:
    """A worker's settler: what is asked aside is made when ``answer`` says so."""

    def __init__(self) -> None:
        loop = SimpleNamespace(start_again=self._start_again)
        self.pending = SimpleNamespace(aside=self, loop=loop)
        self.asked: list[Any] = []

    def ask(self, what: str, call: Any, then: Any, keep: bool = False) -> None:
        self.asked.append((call, then))

    def answer(self) -> None:
        for call, then in self.asked:
            try:
                answer = call()
            except ConnectionError:
                answer = None
            then(answer)

    def _start_again(self, request: Any, delay: float) -> None:
        request.execute_using_pool("pool")


def test_backend_that_is_away_keeps_nobody_from_running() -> None:
    backend, beside = Backend(), Beside()
    request = received(backend, WAITED)
    recall_revocation(request, beside)  # type: ignore[arg-type]
    state.reserved_requests.add(request)
    request.execute_using_pool("pool")
    assert request.ran == []  # it waits for the answer, in no one's way
    beside.answer()
    assert backend.asked == 1
    assert "revocation-1" not in state.revoked
    assert request.ran == ["pool"]


def test_message_lost_with_its_connection_meanwhile_is_not_run_here() -> None:
    beside, request = Beside(), received(Backend(), WAITED)
    recall_revocation(request, beside)  # type: ignore[arg-type]
    request.execute_using_pool("pool")
    beside.answer()
    assert request.ran == []


@pytest.mark.parametrize("headers", [None, {}, {"x-death": [{}]}, {HEADER: "{}"}])
def test_store_is_not_asked_for_what_has_not_waited_in_rabbitmq(headers: Any) -> None:
    """A dead-letter exchange of the user's own marks messages too."""
    backend, beside = Backend(), Beside()
    recall_revocation(received(backend, headers), beside)  # type: ignore[arg-type]
    beside.answer()
    assert backend.asked == 0


def test_result_that_nobody_keeps_is_not_asked_for() -> None:
    """Of rpc:// a look would make a queue, which nobody would ever read."""
    backend, rpc, beside = Backend(), Backend("rpc://"), Beside()
    recall_revocation(received(backend, WAITED, ignore_result=True), beside)  # type: ignore[arg-type]
    recall_revocation(received(rpc, WAITED), beside)  # type: ignore[arg-type]
    beside.answer()
    assert _note_in_backend(SimpleNamespace(backend=rpc), {"revocation-1"}) == 0
    assert backend.asked == rpc.asked == 0


def test_commands_are_heard_once_though_it_is_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("revoke", "terminate"):
        monkeypatch.setitem(Panel.data, name, lambda panel, task_id: None)
    hear_revocations()
    heard = {name: Panel.data[name] for name in ("revoke", "terminate")}
    hear_revocations()
    assert {name: Panel.data[name] for name in heard} == heard
