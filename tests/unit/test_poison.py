"""What becomes of a message at its limit of lost workers; the broker and the workers are stubs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.worker import peers, poison
from celery_resilience.worker.peers import Answer, Found


class Settler:
    settings = SimpleNamespace(max_worker_losses=3)
    pending = SimpleNamespace(aside=None)

    def __init__(self) -> None:
        self.told: list[Any] = []

    def schedule(self, delivery: Any, copy: Envelope, delay: float, **told: Any) -> None:
        self.told.append((History.loads(copy.headers[HEADER]), delay))

    def end_as(self, kind: Any, delivery: Any, why: str) -> None:
        delivery.ack()

    def bury(self, *told: Any, **more: Any) -> None:
        self.told.append("letter")


class Request:
    name, id, ignore_result, _task, _hostname = "t", "1", False, None, "w@1"
    _message = SimpleNamespace(channel=None)

    def detach(self) -> None: ...


AT_LIMIT = History(crash_redeliveries=3, redelivered_at=1.0)
AFTER_ONE = History(crash_redeliveries=1, redelivered_at=1.0)


@pytest.mark.parametrize(
    ("history", "found", "stored", "becomes"),
    [
        (
            AT_LIMIT,
            Answer.RUNS,
            False,
            (History(crash_redeliveries=1, redelivered_at=1.0, elsewhere=True), 10.0),
        ),
        (AT_LIMIT, Answer.DONE, False, "let go"),
        (AT_LIMIT, Answer.HAD, False, (AFTER_ONE, 0)),
        (AT_LIMIT, Answer.NOTHING, False, "letter"),
        (AT_LIMIT, Answer.NOTHING, None, "letter"),  # the result store does not answer
        (AT_LIMIT, Answer.NOTHING, True, "let go"),
        # One that is replayed keeps its id, and may have succeeded in another life.
        (
            History(crash_redeliveries=3, redelivered_at=1.0, lineage=("x",)),
            Answer.NOTHING,
            True,
            "letter",
        ),
        # The worker that ran it has died, or forgotten it: that is one death.
        (
            History(crash_redeliveries=1, redelivered_at=1.0, elsewhere=True),
            Answer.NOTHING,
            True,
            (AFTER_ONE, 0),
        ),
    ],
)
def test_message_at_its_limit_that_runs_or_is_done_is_no_letter(
    history: History, found: Answer, stored: bool | None, becomes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settler: Any = Settler()
    envelope = Envelope(b"", None, None, headers={HEADER: AT_LIMIT.dumps()}, queue="shop")
    delivery: Any = SimpleNamespace(envelope=envelope, ack=lambda: settler.told.append("let go"))
    monkeypatch.setattr(
        poison, "ask_peers", lambda request, settler, counted, then: then(Found(found))
    )
    monkeypatch.setattr(poison, "ask_for_success", lambda request, aside, then: then(stored))
    poison.ask_before_end(Request(), settler, delivery, history)
    assert settler.told == [becomes]


def test_answer_that_it_runs_counts_more_than_that_it_had() -> None:
    answers = [
        {"a": ["had", "", "done"]}, {"b": ["runs", "", "had"]}, {"c": {"error": "no such command"}},
        {"d": []}, "nonsense",
    ]  # fmt: skip
    assert [peers._best(answers, number) for number in range(3)] == [
        Found(Answer.RUNS, "b"), Found(Answer.NOTHING), Found(Answer.DONE, "a"),
    ]  # fmt: skip


def test_question_is_repeated_for_those_that_no_worker_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    loop = SimpleNamespace(
        looping=True, in_loop=lambda call: call(),
        call_after=lambda delay, call, *args: calls.append(lambda: call(*args)),
    )  # fmt: skip
    pending = SimpleNamespace(broker=object(), loop=loop)
    questions = peers._Questions(SimpleNamespace(pending=pending))  # type: ignore[arg-type]
    asked: list[Any] = []
    clock = SimpleNamespace(monotonic=lambda: 3.0 * len(asked), time=lambda: 100.0)
    monkeypatch.setattr(peers, "time", clock)

    def ask(what: str, call: Any, then: Any) -> None:
        asked.append(call.args[1:])
        then([{"w": ["", "had"]}] if len(asked) == 1 else None)

    questions._aside.ask = ask  # type: ignore[method-assign, assignment]
    told: list[Any] = []
    one, other = (peers.Name(id_, 0, 0, (), "") for id_ in ("one", "other"))
    for name, at in ((one, 95.0), (other, None)):
        questions.ask(None, name, at, lambda found, name=name: told.append((name.id, found)))  # type: ignore[misc]
    while calls:
        calls.pop(0)()
    # Each is asked for with the seconds since it was first counted, and a minute before.
    assert asked == [([one, other], [65.0, 0.0]), *[([one], [65.0])] * 2]
    assert told == [("other", Found(Answer.HAD, "w")), ("one", Found(Answer.NOTHING))]
