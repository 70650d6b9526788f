"""A worker without an event loop looks after its settlements by Celery's timer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.concurrency.gevent import Timer as GreenTimer
from kombu.asynchronous.timer import Timer as PlainTimer

from celery_resilience.worker import bootstep
from celery_resilience.worker.bootstep import ResilienceStep


@pytest.mark.parametrize("is_cleared", [True, False], ids=["cleared", "kept"])
@pytest.mark.parametrize("timer", [GreenTimer, PlainTimer])
def test_checks_go_on_after_a_lost_connection(
    timer: Any, is_cleared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each, whether Celery clears its timer then (5.5) or not."""
    gevent = pytest.importorskip("gevent")
    monkeypatch.setattr(bootstep, "_CHECK", 0.001)
    checks: list[str] = []
    step: Any = SimpleNamespace(_checks=None)
    its_timer = timer()
    ResilienceStep._check_by(step, its_timer, lambda: checks.append("checked"))
    first = getattr(step._checks, "entry", step._checks)
    if is_cleared:
        its_timer.clear()
    ResilienceStep._check_by(step, its_timer, lambda: checks.append("checked"))
    if timer is GreenTimer:
        with gevent.Timeout(10):
            while len(checks) < 3:
                gevent.sleep(0.001)
    else:
        for _, entry in its_timer:
            if entry is not None:
                entry()
            if len(checks) >= 3:
                break
    assert first.canceled
    again = getattr(step._checks, "entry", step._checks)
    assert again is not first
    assert not again.canceled
    its_timer.clear()
