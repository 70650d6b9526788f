"""What the worker's main process decides about a body that could not tell how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.exceptions import Reject

from celery_resilience import Policy, ResilientTask
from celery_resilience.messages.history import Attempt, History
from celery_resilience.policy.decision import GiveUp, Reason, RetryLater
from celery_resilience.worker.decide import came_before, decide_lost_attempt, decide_requeue
from celery_resilience.worker.result_store import success_is_stored

#: Its retries would be later than what expires in a minute.
LATE = Policy(max_retries=5, backoff=600, jitter="none")


@pytest.fixture
def task() -> Iterator[Any]:
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(base=ResilientTask, failure_policy=LATE, name="t", shared=False)
    def t() -> None: ...

    yield t
    app.close()


def request(task: Any, expires: datetime | None = None, header: str | None = None) -> Any:
    told = {"retries": 0, "headers": {}, "celery_resilience": header}
    return SimpleNamespace(
        name="t", id="1", _task=task, _request_dict=told, _expires=expires, time_start=time.time()
    )


def attempt(error: str) -> Attempt:
    return Attempt(1, time.time(), 0.5, "w@1", error, "", "unknown", "")


PUT_BACK = attempt("celery.exceptions.Reject")


def in_a_minute() -> datetime:
    return datetime.now(timezone.utc) + timedelta(minutes=1)


def test_lost_process_is_a_retry_until_there_were_too_many(task: Any) -> None:
    before = History(losses=1).dumps()
    killed = WorkerLostError("killed")
    decision = decide_lost_attempt(request(task, header=before), killed, 3).decision
    assert isinstance(decision, RetryLater)
    decision = decide_lost_attempt(request(task, header=before), killed, 2).decision
    assert isinstance(decision, GiveUp)
    assert (decision.reason, decision.rule) == (Reason.WORKER_LOST, "max_worker_losses=2")


@pytest.mark.parametrize("died_of", [WorkerLostError("killed"), SystemExit(3), KeyboardInterrupt()])
def test_worker_lost_is_the_reason_when_the_policy_gives_up(
    task: Any, died_of: BaseException
) -> None:
    """And not the kind of error. An exit is a loss too: that is what is reported first."""
    task.failure_policy = Policy(max_retries=0)
    decision = decide_lost_attempt(request(task), died_of, 3).decision
    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.WORKER_LOST


def test_retry_that_would_be_due_after_it_expires_is_a_letter(task: Any) -> None:
    decision = decide_lost_attempt(
        request(task, in_a_minute()), WorkerLostError("killed"), 3
    ).decision
    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.EXPIRED
    decision = decide_requeue(request(task, in_a_minute()), Reject(requeue=True)).decision
    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.EXPIRED


def test_policy_that_raises_is_a_letter(task: Any, caplog: pytest.LogCaptureFixture) -> None:
    task.throws = ("no class",)
    decision = decide_lost_attempt(request(task), WorkerLostError("killed"), 3).decision
    assert isinstance(decision, GiveUp)
    assert decision.rule == "its policy raised"
    assert "its policy raised" in caplog.text


def test_task_that_was_requeued_or_lost_its_worker_finds_itself_redelivered(task: Any) -> None:
    """The copy is ours, and bears no mark of the broker's."""
    failed = attempt("shop.Timeout")
    assert came_before(request(task, header=History(crash_redeliveries=1).dumps()))
    assert came_before(request(task, header=History().add(PUT_BACK).dumps()))
    assert not came_before(request(task, header=History().add(PUT_BACK).add(failed).dumps()))
    assert not came_before(request(task, header=History(losses=1).dumps()))
    assert not came_before(request(task))


def test_success_is_found_though_billiard_has_started_the_body_again(task: Any) -> None:
    """What is stored first stays; only a success of before this delivery is another run's."""
    now = datetime.now(timezone.utc)
    meta = {"status": "SUCCESS", "date_done": now.isoformat()}
    stored = SimpleNamespace(backend=SimpleNamespace(_get_task_meta_for=lambda task_id: meta))

    def delivery(seconds_before: float) -> Any:
        return SimpleNamespace(
            id="1", ignore_result=False, _task=stored, time_start=now.timestamp() + 1,
            received_at=now.timestamp() - seconds_before,
        )  # fmt: skip

    assert success_is_stored(delivery(0.5))
    assert not success_is_stored(delivery(-0.5))
