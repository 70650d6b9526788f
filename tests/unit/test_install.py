"""install(app): which tasks are covered, and who decides about them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery, Task, shared_task
from celery.signals import worker_ready

from celery_resilience import Policy, ResilientTask, install, on
from celery_resilience.policy.default import UNSTATED
from celery_resilience.worker.request import ResilientRequest


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    return app


def test_every_way_to_define_a_task_is_covered(app: Celery) -> None:
    """By decorator, with a base of its own, class-based, shared; Celery's own are left alone."""

    class Own(Task):
        abstract = True
        greeting = "hello"
        acks_late = False

    class ByClass(Task):
        name = "shop.by_class"

        def run(self) -> None: ...

    @app.task
    def plain() -> None: ...

    @app.task(base=Own)
    def own() -> None: ...

    @app.task(base=Task)
    def stock() -> None: ...

    app.register_task(ByClass())

    @shared_task(name="shop.shared")
    def shared() -> None: ...

    app.finalize()
    covered = {name for name, task in app.tasks.items() if isinstance(task, ResilientTask)}
    assert covered >= {plain.name, own.name, stock.name, "shop.by_class", "shop.shared"}
    assert {name for name in covered if name.startswith("celery.")} == {
        "celery.accumulate",
        "celery.chunks",
        "celery.map",
        "celery.starmap",
    }, "what carries the app's own arguments; the rest is Celery's housekeeping"
    assert isinstance(own, Own)
    assert own.greeting == "hello"
    assert own.acks_late is False, "what the user's base says comes first"
    assert plain.acks_late is True
    assert app.tasks["shop.by_class"].policy_in_force.unmatched == "give_up"


def test_task_that_states_nothing_is_not_retried(app: Celery) -> None:
    @app.task
    def plain() -> None: ...

    assert plain.policy_in_force.unmatched == "give_up"


def test_classifier_decides_for_them_with_classify() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app, classify=True)

    @app.task
    def plain() -> None: ...

    assert plain.policy_in_force.unmatched == "classify"


def test_default_policy_decides_where_neither_a_policy_nor_celerys_options_do() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.task_annotations = {"shop.annotated": {"max_retries": 4}}
    install(app, classify=True)

    class Five(Task):
        abstract = True
        max_retries = 5

    @app.task
    def plain() -> None: ...

    @app.task(base=ResilientTask)
    def chosen() -> None: ...

    @app.task(base=Five)
    def five() -> None: ...

    @app.task(max_retries=3)
    def three() -> None: ...

    @app.task(name="shop.annotated")
    def annotated() -> None: ...

    @app.task(failure_policy=Policy(), max_retries=7)
    def written() -> None: ...

    assert plain.policy_in_force is chosen.policy_in_force is UNSTATED
    assert five.policy_in_force == Policy(max_retries=5)
    assert three.policy_in_force == written.policy_in_force == Policy(max_retries=3)
    assert annotated.policy_in_force == Policy(max_retries=4)


def test_celerys_options_keep_their_meaning(app: Celery) -> None:
    @app.task(autoretry_for=(OSError,), retry_backoff=True, max_retries=7)
    def fetch() -> None: ...

    policy = fetch.policy_in_force
    assert (policy.max_retries, policy.unmatched) == (7, "give_up")
    assert fetch.run() is None, "Celery's own wrapper is not around it"


def test_every_task_has_its_own_request_and_its_annotations(app: Celery) -> None:
    """Looking for misspelt options must not bind the base class: that would bind every task."""
    app.conf.task_annotations = {
        name: {"max_retries": 1, "autoretry_for": (OSError,)} for name in ("shop.one", "shop.two")
    }
    tasks: list[Any] = []
    for name in ("shop.one", "shop.two"):

        @app.task(name=name, base=ResilientTask, lazy=False)
        def fetch() -> None: ...

        tasks.append(fetch)
    assert [task.policy_in_force.max_retries for task in tasks] == [1, 1]
    assert tasks[0].request_stack is not tasks[1].request_stack
    assert not ResilientTask.__dict__.get("__bound__")


def test_failure_policy_decides_alone(app: Celery) -> None:
    stated = Policy(on(ValueError).dead_letter())

    @app.task(failure_policy=stated, autoretry_for=(OSError,))
    def pay() -> None: ...

    assert pay.policy_in_force is stated


def test_only_names_the_tasks_that_are_meant() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app, only=["cron.*"])

    @app.task(name="cron.nightly")
    def nightly() -> None: ...

    @app.task(name="web.hit")
    def hit() -> None: ...

    assert isinstance(nightly, ResilientTask)
    assert not isinstance(hit, ResilientTask)


def test_twice_is_once_and_a_contradiction_is_refused(app: Celery) -> None:
    steps, flags = len(app.steps["consumer"]), [*app.user_options["worker"]]
    install(app)
    assert len(app.steps["consumer"]) == steps
    assert [*app.user_options["worker"]] == flags
    with pytest.raises(ValueError, match="call it once"):
        install(app, classify=True)


def test_too_late_is_refused() -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.early")
    def early() -> None: ...

    with pytest.raises(RuntimeError, match="right after app = Celery"):
        install(app)
    app.finalize()
    with pytest.raises(RuntimeError, match=r"shop\.early"):
        install(app)


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("cron.*", r"got 'cron\.\*': write \['cron\.\*'\]"),
        (5, "a list of patterns of task names, got 5"),
        ([Task], "a list of patterns of task names, got "),
    ],
)
def test_patterns_of_a_wrong_type_are_refused(only: Any, said: str) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    with pytest.raises(TypeError, match=said):
        install(app, only=only)


def test_pattern_for_no_task_is_told_when_the_worker_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its tasks would be stock Celery's without a word."""
    app, other = (Celery("shop", broker="memory://", set_as_current=False) for _ in "12")
    install(app, only=["cron.*", "crom.nightly"])
    install(other, only=["nobodys.*"])

    @app.task(name="cron.nightly")
    def nightly() -> None: ...

    app.finalize()
    worker_ready.send(sender=Mock(app=app))
    assert [record.getMessage() for record in caplog.records] == [
        "install(only=['crom.nightly']) matches no task of this app; did you mean 'cron.nightly'?"
    ]


def test_misspelt_option_is_refused_with_what_was_meant(app: Celery) -> None:
    with pytest.raises(TypeError, match="did you mean 'retry_backoff'"):

        @app.task(retry_bakoff=True, lazy=False)
        def fetch() -> None: ...


def test_wrong_option_is_refused_when_the_task_is_defined(app: Celery) -> None:
    with pytest.raises(TypeError, match="takes exception classes, got 'Timeout'"):

        @app.task(autoretry_for=("Timeout",), lazy=False)
        def fetch() -> None: ...

    with pytest.raises(TypeError, match="failure_policy takes a Policy"):

        @app.task(failure_policy={"max_retries": 3}, lazy=False)
        def pay() -> None: ...


def test_request_class_of_the_users_own_is_mixed_with_ours(app: Celery) -> None:
    from celery.worker.request import Request

    class Own(Request):
        def on_success(self, *args: Any, **kwargs: Any) -> None: ...

    @app.task(Request=Own)
    def plain() -> None: ...

    from celery_resilience.worker.attach import _with_ours

    mixed = _with_ours(plain.Request)
    assert issubclass(mixed, Own)
    assert issubclass(mixed, ResilientRequest)
    assert _with_ours("celery.worker.request:Request") is ResilientRequest


def test_flag_of_ours_without_install_says_what_to_do() -> None:
    def said(flag: str) -> str:
        command = [sys.executable, "-m", "celery", "-b", "memory://", "worker", flag, "x"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr

    known = said("--dead-letter-queue")
    assert "--dead-letter-queue is a flag of celery_resilience" in known
    assert "call install(app), from celery_resilience, right after app = Celery(...)" in known
    assert "No such option" in said("--dead-letters")
