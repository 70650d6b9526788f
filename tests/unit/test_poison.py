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


class Questions(peers._Questions):
    """What one worker asks; RabbitMQ and the other workers are stubs. Each question takes 3 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.calls: list[Any] = []
        loop = SimpleNamespace(
            looping=True, in_loop=lambda call: call(),
            call_after=lambda delay, call, *args: self.calls.append(lambda: call(*args)),
        )  # fmt: skip
        self.pending = SimpleNamespace(broker=object(), loop=loop)
        super().__init__(SimpleNamespace(pending=self.pending))  # type: ignore[arg-type]
        self.asked: list[Any] = []
        clock = SimpleNamespace(monotonic=lambda: 3.0 * len(self.asked), time=lambda: 100.0)
        monkeypatch.setattr(peers, "time", clock)
        monkeypatch.setattr(peers, "_question", lambda app, *asked: self.asked.append(asked))
        given = iter(answers)

        def ask(what: str, call: Any, then: Any) -> None:
            call()
            then(next(given))

        self._aside.ask = ask  # type: ignore[method-assign, assignment]
        self.told: list[Any] = []

    def about(self, id_: str, counted: float | None = None) -> None:
        name = peers.Name(id_, 0, 0, (), "")
        self.ask(None, name, counted, lambda found: self.told.append((id_, found.answer)))

    def go_on(self) -> None:
        while self.calls:
            self.calls.pop(0)()

    def names(self) -> list[list[str]]:
        return [[name.id for name in names] for names, _ in self.asked]


def test_question_is_repeated_for_those_that_no_worker_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = [{"w": [""]}]
    questions = Questions(monkeypatch, [{"w": ["", "had"]}], *[nobody] * 9)
    questions.about("one", 95.0)
    questions.about("other")
    questions.go_on()
    assert questions.told == [("other", Answer.HAD), ("one", Answer.NOTHING)]
    assert questions.names() == [["one", "other"], *[["one"]] * 3]
    # Each with the seconds since it was first counted, and a minute before.
    assert [ages for _, ages in questions.asked] == [[65.0, 60.0], *[[65.0]] * 3]


@pytest.mark.parametrize("nothing", [None, []])
def test_question_that_nobody_has_answered_is_repeated_for_longer(
    nothing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to the others is broken, or slow: that says nothing of the message."""
    questions = Questions(monkeypatch, *[nothing] * 6, [{"w": ["had"]}])
    questions.about("one")
    questions.go_on()
    assert questions.told == [("one", Answer.HAD)]
    questions = Questions(monkeypatch, *[nothing] * 9)
    questions.about("one")
    questions.go_on()
    assert questions.told == [("one", Answer.NOTHING)]
    assert len(questions.asked) == 7, "20 s"


def test_question_of_a_connection_that_is_lost_is_asked_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each loss would leave its own behind, and they would wait for each other."""
    questions = Questions(monkeypatch, *[[{"w": [""]}]] * 9)
    for _ in range(5):
        questions.about("lost")
        questions.pending.broker = object()
    questions.about("one")
    timers = [questions.calls.pop(0) for _ in range(6)]  # with gevent a loss takes none along
    for timer in timers:
        timer()
    assert questions.names() == [["one"]]
    questions.go_on()
    assert questions.told == [("one", Answer.NOTHING)]
    assert questions.names() == [["one"]] * 4


def test_answer_is_for_each_message_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions(monkeypatch, [{"w": ["had"]}])
    questions.about("one")
    questions.about("one")
    questions.go_on()
    assert questions.told == [("one", Answer.HAD)] * 2


def test_silence_after_an_answer_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions(monkeypatch, [{"w": [""]}], *[None] * 4, [{"w": ["had"]}])
    questions.about("one")
    questions.go_on()
    assert questions.told == [("one", Answer.HAD)]
    questions = Questions(monkeypatch, [{"w": [""]}], *[None] * 19)
    questions.about("one")
    questions.go_on()
    assert questions.told == [("one", Answer.NOTHING)]
    assert len(questions.asked) == 10, "29 s"


def test_end_that_fails_or_asks_leaves_the_others_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = Questions(monkeypatch, [{"w": ["had", ""]}], *[[{"w": ["had", "had"]}]] * 5)

    def fail(found: Found) -> None:
        questions.about("asked meanwhile")
        raise RuntimeError("no")

    questions.ask(None, peers.Name("fails", 0, 0, (), ""), None, fail)
    questions.about("other")
    questions.go_on()
    assert questions.told == [("other", Answer.HAD), ("asked meanwhile", Answer.HAD)]
    assert questions.names() == [["fails", "other"], ["other", "asked meanwhile"]]
