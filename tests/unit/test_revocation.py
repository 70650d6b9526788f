"""Whom a worker asks whether a retry was revoked while it waited, and whom it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from celery.worker.control import Panel

from celery_resilience.headers import HEADER
from celery_resilience.revocation import _note_in_backend, hear_revocations, recall_revocation

WAITED = {"x-death": [{}], HEADER: "{}"}


class Backend:
    def __init__(self, url: str = "redis://") -> None:
        self.url = url
        self.asked = 0

    def as_uri(self) -> str:
        return self.url

    def get_task_meta(self, task_id: str, cache: bool) -> Any:
        self.asked += 1
        raise ConnectionError("away")


def received(backend: Backend, headers: Any, ignore_result: bool = False) -> Any:
    return SimpleNamespace(
        id="revocation-1",
        ignore_result=ignore_result,
        _message=SimpleNamespace(headers=headers),
        _task=SimpleNamespace(backend=backend),
    )


def test_a_backend_that_is_away_keeps_nobody_from_running() -> None:
    backend = Backend()
    recall_revocation(received(backend, WAITED))
    assert backend.asked == 1
    assert "revocation-1" not in state.revoked


@pytest.mark.parametrize("headers", [None, {}, {"x-death": [{}]}, {HEADER: "{}"}])
def test_of_what_has_not_waited_in_rabbitmq_nobody_is_asked(headers: Any) -> None:
    """A dead-letter exchange of the user's own marks messages too."""
    backend = Backend()
    recall_revocation(received(backend, headers))
    assert backend.asked == 0


def test_a_result_that_nobody_keeps_is_not_asked_for() -> None:
    """Of rpc:// a look would make a queue, which nobody would ever read."""
    backend, rpc = Backend(), Backend("rpc://")
    recall_revocation(received(backend, WAITED, ignore_result=True))
    recall_revocation(received(rpc, WAITED))
    assert _note_in_backend(SimpleNamespace(backend=rpc), {"revocation-1"}) == 0
    assert backend.asked == rpc.asked == 0


def test_commands_are_heard_once_though_it_is_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("revoke", "terminate"):
        monkeypatch.setitem(Panel.data, name, lambda panel, task_id: None)
    hear_revocations()
    heard = {name: Panel.data[name] for name in ("revoke", "terminate")}
    hear_revocations()
    assert {name: Panel.data[name] for name in heard} == heard
