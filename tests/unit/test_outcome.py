"""How a delivery ended is said once, in one place, whatever has become of its message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.worker import state
from celery.worker.request import create_request_cls
from kombu.message import Message

from celery_resilience.brokers.base import Delivery, NotOurs, TooLarge, Unroutable
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import Cause, ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.messages.outcome import Outcome, OutcomeKind
from celery_resilience.policy.decision import Decision, Drop, GiveUp, Reason, RetryLater
from celery_resilience.policy.policy import Policy
from celery_resilience.settings import Settings
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.base import ResilientTask
from celery_resilience.worker.decide import _REJECTION_FAILS, Report
from celery_resilience.worker.request import ResilientRequest
from celery_resilience.worker.settle import Settler

FAILED_ONCE = Attempt(1, 5.0, 0.5, "w@1", "shop.Timeout", "", "transient", "x", delay=1.0)
HISTORY = History(lineage=("letter-1",)).add(FAILED_ONCE)
SNOOZE = Verdict(Kind.TRANSIENT, "protocol.Snooze", "code", "")
REJECT = Verdict(Kind.UNKNOWN, "Reject", "code", "")
TIMEOUT = Verdict(Kind.TRANSIENT, "builtin.TimeoutError", "network", "")


class Broker:
    """Answers each settlement with the next of *answers*."""

    def __init__(self, *answers: BaseException | None) -> None:
        self.answers = list(answers)

    def schedule(self, delivery: Any, copy: Any, delay: float, done: Any) -> None:
        done(self.answers.pop(0) if self.answers else None)

    def dead_letter(
        self, delivery: Any, letter: Any, queue: str, arguments: Any, done: Any
    ) -> None:
        done(self.answers.pop(0) if self.answers else None)

    def flush(self, timeout: float) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.task_acks_late = True

    @app.task(base=ResilientTask, name="t", shared=False)
    def t() -> None: ...

    @app.task(base=ResilientTask, name="early", shared=False, acks_late=False)
    def early() -> None: ...

    yield app
    app.close()


@pytest.fixture
def settler(app: Celery) -> Settler:
    consumer = SimpleNamespace(app=app, blueprint=SimpleNamespace(state=None))
    settler = Settler(consumer, Settings())
    use(settler)
    return settler


def use(settler: Settler, *answers: BaseException | None) -> None:
    broker: Any = Broker(*answers)
    settler.pending.use(broker)


@pytest.fixture
def told(settler: Settler) -> list[Outcome]:
    told: list[Outcome] = []
    settler.outcomes.listeners.append(told.append)
    return told


def delivery(task: str = "t", **options: Any) -> Delivery:
    headers = {"task": task, "id": "1", "retries": 1, HEADER: HISTORY.dumps()}
    envelope = Envelope(b"[[], {}, {}]", "application/json", "utf-8", headers, queue="shop")
    return Delivery(None, envelope, lambda: None, subject="t[1]", worker="w@2", **options)


def result(decision: Decision, verdict: Verdict = TIMEOUT) -> AttemptResult:
    return AttemptResult(decision, verdict, ErrorRecord("TimeoutError", "late"), at=9.0, ran=0.25)


LATER, DEAD = RetryLater(3.0, rule="rule 1"), GiveUp(Reason.EXHAUSTED, rule="rule 1")


@pytest.mark.parametrize(
    ("attempt", "answers", "kind", "counted"),
    [
        (result(LATER), [], "retry_scheduled", "retried"),
        (result(LATER, SNOOZE), [], "snoozed", "retried"),
        (result(LATER, REJECT), [], "requeued", "retried"),
        (result(LATER), [ConnectionError("away"), None], "retry_scheduled", "retried"),
        (result(LATER), [NotOurs("x")], "not_ours", None),
        (result(LATER), [Unroutable("x")], "dead_lettered", "dead_letters"),
        (result(LATER), [TooLarge("x")], "dead_lettered", "dead_letters"),
        (result(RetryLater(1e12)), [], "dead_lettered", "dead_letters"),
        (result(DEAD), [], "dead_lettered", "dead_letters"),
        (result(DEAD), [TooLarge("x"), None], "dead_lettered", "dead_letters"),
        (result(DEAD), [TooLarge("x"), TooLarge("x"), None], "dead_lettered", "dead_letters"),
        (result(DEAD), [Unroutable("x"), None], "dead_lettered", "dead_letters"),
        (result(DEAD), [NotOurs("x")], "not_ours", None),
        (result(Drop("discarded")), [], "dropped", "dropped"),
        (result(Drop("x", counted_as="retried")), [], "retry_scheduled", "retried"),
        (result(Drop("x", counted_as="results_not_stored")), [], "succeeded", "results_not_stored"),
    ],
)
def test_outcome_is_told_once_after_the_settlement(
    settler: Settler, told: list[Outcome], attempt: AttemptResult, answers: list[Any], kind: str,
    counted: str | None,
) -> None:  # fmt: skip
    use(settler, *answers)
    settler.settle(delivery(), attempt)
    for _ in answers:
        settler.pending.drain(0)
    assert [outcome.kind.value for outcome in told] == [kind]
    assert +settler.outcomes.counts == ({} if counted is None else {counted: 1})


def test_outcome_says_all_that_is_known_of_a_retry(settler: Settler, told: list[Outcome]) -> None:
    settler.settle(delivery(), result(LATER))
    (outcome,) = told
    assert (outcome.task, outcome.task_id, outcome.queue) == ("t", "1", "shop")
    assert (outcome.life, outcome.attempt, outcome.retries, outcome.worker) == (2, 2, 1, "w@2")
    assert (outcome.at, outcome.duration, outcome.delay) == (9.0, 0.25, 3.0)
    assert outcome.elapsed is not None
    assert outcome.elapsed > 1e9  # the first attempt began at 5.0
    assert outcome.due_at is not None
    assert (outcome.verdict, outcome.decision, outcome.rule) == (TIMEOUT, LATER, "rule 1")
    assert outcome.error == ErrorRecord("TimeoutError", "late")
    assert outcome.replay == "letter-1"


def test_outcome_names_the_policy_in_force(
    app: Celery, settler: Settler, told: list[Outcome]
) -> None:
    @app.task(base=ResilientTask, name="named", shared=False, failure_policy=Policy(name="patient"))
    def named() -> None: ...

    for name in ("named", "t", "of nobody"):
        settler.settle(delivery(task=name), result(LATER))
    assert [outcome.policy for outcome in told] == ["patient", "", ""]


def test_outcome_shows_no_credentials(settler: Settler, told: list[Outcome]) -> None:
    error = ErrorRecord("E", "password=abc", (Cause("F", "token=abc"),), "secret=abc")
    spoken = replace(result(LATER), error=error)
    settler.settle(delivery(), spoken)
    settler.settle(delivery(), replace(spoken, decision=DEAD))
    settler.bury(delivery(), Reason.INVALID, "api_key=abc", error=ValueError("password=abc"))
    assert [outcome.kind.value for outcome in told] == ["retry_scheduled", *["dead_lettered"] * 2]
    for outcome in told:
        assert "abc" not in repr((outcome.error, outcome.rule))
        assert "***" in repr(outcome.error)


def test_outcome_names_the_letter(settler: Settler, told: list[Outcome]) -> None:
    settler.bury(delivery(), Reason.INVALID, "no task", error=ValueError("x"))
    (outcome,) = told
    assert (outcome.reason, outcome.rule, outcome.attempt) == (Reason.INVALID, "no task", 0)
    assert outcome.error is not None
    assert outcome.error.error == "ValueError"
    assert len(outcome.letter_id) == 32
    assert outcome.fingerprint
    assert outcome.cause


def test_outcome_of_what_could_not_be_settled(settler: Settler, told: list[Outcome]) -> None:
    use(settler, *[ConnectionError("away")] * 9)
    settler.settle(delivery(), result(LATER))
    settler.settle(delivery(acked_early=True), result(DEAD))
    assert told == []
    settler.end()
    assert [outcome.kind.value for outcome in told] == ["requeued", "lost"]


def test_letter_that_is_too_large_is_packed_once_and_then_kept(
    settler: Settler, told: list[Outcome]
) -> None:
    use(settler, *[TooLarge("x")] * 9)
    settler.settle(delivery(), result(DEAD))
    assert (settler.pending.unfinished, settler.pending.failing) == (1, 1)
    assert told == []


def test_listener_that_raises_harms_no_other(settler: Settler, told: list[Outcome]) -> None:
    def fail(outcome: Outcome) -> None:
        raise RuntimeError("x")

    settler.outcomes.listeners.insert(0, fail)
    settler.settle(delivery(), result(LATER))
    assert [outcome.kind for outcome in told] == [OutcomeKind.RETRY_SCHEDULED]


# What a request tells, with the class that Celery makes for each task


def request(app: Celery, settler: Settler, name: str = "t", header: str | None = None) -> Any:
    task, nothing = app.tasks[name], lambda *args, **options: None
    pool: Any = SimpleNamespace(apply_async=nothing)
    base: Any = settler.request_class(ResilientRequest)
    kind = create_request_cls(base, task, pool, "w@1", None, app=app)
    headers = {"task": name, "id": "1", **({HEADER: header} if header else {})}
    message = Message(
        b"[[], {}, {}]", content_type="application/json", content_encoding="utf-8",
        headers=headers, delivery_info={"routing_key": "shop"}, delivery_tag="d",
        channel=SimpleNamespace(
            basic_ack=nothing, basic_reject=nothing, connection=SimpleNamespace(), is_open=True
        ),
    )  # fmt: skip
    made = kind(
        message, app=app, task=task, hostname="w@1", connection_errors=(), decoded=True,
        body=[[], {}, {}], headers=headers,
    )  # fmt: skip
    made.time_start = 9.0
    return made


@pytest.mark.parametrize("name", ["t", "early"])
@pytest.mark.parametrize(("header", "kind"), [(None, "succeeded"), (HISTORY.dumps(), "recovered")])
def test_success_is_told_after_the_body(
    app: Celery, settler: Settler, told: list[Outcome], name: str, header: str | None, kind: str
) -> None:
    one = request(app, settler, name, header)
    one.acknowledged = name == "early"
    one.on_success((0, "done", 0.1))
    assert one.acknowledged
    assert [(each.kind.value, each.task, each.queue) for each in told] == [(kind, name, "shop")]
    assert told[0].attempt == (1 if header is None else 2)
    assert told[0].duration is not None


def test_success_is_not_told_of_a_body_that_a_shutdown_has_killed(
    app: Celery, settler: Settler, told: list[Outcome]
) -> None:
    one = request(app, settler)
    one._already_cancelled = True
    one.on_success((0, None, 0.1))
    assert told == []


def failed(exc: BaseException) -> Any:
    try:
        raise exc
    except BaseException:
        return ExceptionInfo()


@pytest.mark.parametrize(
    ("exc", "kind", "why"),
    [
        (Ignore(), "dropped", "ignored"),
        (Ignore("Replaced by new task"), "succeeded", "replaced"),
        (Retry(), "retry_scheduled", "published by self.retry"),
    ],
)
def test_bodys_word_to_celery_is_told_as_an_outcome(
    app: Celery, settler: Settler, told: list[Outcome], exc: Exception, kind: str, why: str
) -> None:
    request(app, settler).on_success((1, failed(exc), 0.1))
    assert [(outcome.kind.value, outcome.why) for outcome in told] == [(kind, why)]
    assert not +settler.outcomes.counts


def test_replacement_is_known_by_what_celery_says(app: Celery) -> None:
    """Celery has no exception of its own for it."""
    task: Any = app.tasks["t"]
    task.apply_async = lambda *args, **options: None
    task.push_request(id="1", is_eager=False, called_directly=False, delivery_info={})
    try:
        with pytest.raises(Ignore, match=r"^Replaced by new task"):
            task.replace(task.s())
    finally:
        task.pop_request()


@pytest.mark.parametrize(("early", "kind"), [(True, ["lost"]), (False, [])])
def test_body_killed_by_a_cold_shutdown_is_lost_if_it_was_acknowledged(
    app: Celery, settler: Settler, told: list[Outcome], early: bool, kind: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was not is told when it is back in its queue."""
    one = request(app, settler, "early" if early else "t")
    one.acknowledged, one._already_cancelled = early, True
    monkeypatch.setattr(state, "should_terminate", 1)
    one.on_failure(failed(Terminated("15")))
    assert [outcome.kind.value for outcome in told] == kind


def test_revocation_is_told_and_counted(app: Celery, settler: Settler, told: list[Outcome]) -> None:
    one = request(app, settler)
    one._announce_revoked("revoked", False, None, False)
    assert [(outcome.kind.value, outcome.why) for outcome in told] == [("dropped", "revoked")]
    assert settler.outcomes.counts["dropped"] == 1


@pytest.mark.parametrize(("requeue", "kind"), [(True, "requeued"), (False, "dead_lettered")])
def test_rejection_is_told(
    app: Celery, settler: Settler, told: list[Outcome], requeue: bool, kind: str
) -> None:
    request(app, settler).reject(requeue=requeue)
    assert [outcome.kind.value for outcome in told] == [kind]


LOST, KEEP, AGAIN = WorkerLostError("x"), Reject(requeue=False), Reject(requeue=True)
REJECTED = Report.REJECTED if _REJECTION_FAILS else Report.CELERYS_OWN


@pytest.mark.parametrize(
    ("exc", "decided", "settles", "settled", "terminating", "report"),
    [
        (ValueError(), True, True, True, False, Report.SETTLED),
        (ValueError(), True, False, True, False, Report.SETTLED),
        (ValueError(), True, True, False, False, Report.DECIDED),
        (ValueError(), True, True, False, True, Report.DECIDED),
        (ValueError(), False, True, False, False, Report.UNDECIDED),
        (ValueError(), False, True, False, True, Report.UNDECIDED),
        (ValueError(), True, False, False, False, Report.CELERYS_OWN),
        (LOST, False, True, False, False, Report.UNDECIDED),
        (LOST, False, True, False, True, Report.CELERYS_OWN),
        (Terminated("9"), False, True, False, True, Report.CELERYS_OWN),
        (AGAIN, False, True, False, False, Report.REQUEUED),
        (AGAIN, False, True, False, True, Report.CELERYS_OWN),
        (AGAIN, False, False, False, False, Report.CELERYS_OWN),
        (KEEP, False, True, False, False, REJECTED),
        (KEEP, False, True, False, True, Report.CELERYS_OWN),
        (Ignore(), False, True, False, False, Report.CELERYS_OWN),
        (Retry(), False, True, False, False, Report.CELERYS_OWN),
        (Retry(), True, True, False, False, Report.DECIDED),
    ],
)
def test_report_says_what_a_request_has_to_do(
    exc: BaseException, decided: bool, settles: bool, settled: bool, terminating: bool,
    report: Report,
) -> None:  # fmt: skip
    assert report is Report.of(
        exc, decided=decided, settles=settles, settled=settled, terminating=terminating
    )
