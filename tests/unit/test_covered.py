"""What is covered by install(app) and by our base, what is not, and who says so."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured

from celery_resilience import Policy, ResilientTask, install
from celery_resilience.operate.explain import of_task
from celery_resilience.settings import Settings
from celery_resilience.task.coverage import warn_of_early_acks, warn_of_uncovered
from celery_resilience.worker.banner import add_to_banner
from celery_resilience.worker.transport import WorkerTransport
from celery_resilience.worker.unprocessable import _no_such_task
from tests.unit.test_explain import explain


def new_app(**options: Any) -> Celery:
    return Celery("shop", broker="memory://", set_as_current=False, **options)


def nothing() -> None: ...


class Buffered(ResilientTask):
    """As celery-batches has it."""

    abstract = True

    def Strategy(self, task: Any, app: Any, consumer: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


# Celery's own carriers


def test_celerys_carriers_are_covered_though_the_app_has_made_them_already() -> None:
    app = new_app()
    app.finalize()
    install(app, classify=True)
    chunks = app.tasks["celery.chunks"]
    assert isinstance(chunks, ResilientTask)
    assert chunks.acks_late is True
    assert chunks.policy_in_force.unmatched == "classify"
    assert not isinstance(app.tasks["celery.chord_unlock"], ResilientTask)
    assert not isinstance(app.tasks["celery.backend_cleanup"], ResilientTask)


@pytest.mark.parametrize(("only", "covered"), [(["cron.*"], False), (["celery.chunks"], True)])
def test_carrier_has_to_be_named_where_patterns_are(only: list[str], covered: bool) -> None:
    app = new_app()
    install(app, only=only)
    assert isinstance(app.tasks["celery.chunks"], ResilientTask) is covered


# Early acks


@pytest.mark.parametrize(
    "setting",
    [{"task_acks_late": False}, {"CELERY_ACKS_LATE": False}, {"namespace": "SHOP"}],
    ids=lambda setting: next(iter(setting)),
)
def test_acks_late_that_somebody_has_written_is_heard(setting: dict[str, Any]) -> None:
    app = new_app()
    if "namespace" in setting:
        app.config_from_object(SimpleNamespace(SHOP_TASK_ACKS_LATE=False), namespace="SHOP")
    else:
        app.conf.update(setting)
    install(app)

    @app.task
    def by_setting() -> None: ...

    @app.task(acks_late=True)
    def by_option() -> None: ...

    @app.task(base=ResilientTask)
    def by_hand() -> None: ...

    assert by_setting.acks_late is by_hand.acks_late is False
    assert by_option.acks_late is True, "what is nearer to the task wins, as on stock"


def test_messages_are_acknowledged_late_by_default() -> None:
    app = new_app()
    app.conf.task_annotations = {"shop.early": {"acks_late": False}}
    install(app)

    @app.task
    def plain() -> None: ...

    @app.task(name="shop.early")
    def early() -> None: ...

    assert plain.acks_late is True
    assert early.acks_late is False


def test_setting_that_says_true_is_heard_too() -> None:
    app = new_app()
    app.conf.task_acks_late = True

    @app.task(base=ResilientTask)
    def plain() -> None: ...

    assert plain.acks_late is True


def test_setting_that_lets_workers_lose_what_they_run_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = new_app()
    app.conf.task_acks_late = False
    install(app, only=["shop.*"])
    app.task(name="shop.early")(nothing)
    app.task(name="shop.late", acks_late=True)(nothing)
    warn_of_early_acks(app)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("task_acks_late is False in the app's settings: 1 of 2 covered tasks")


@pytest.mark.parametrize("setting", [{}, {"task_acks_late": True}], ids=["unsaid", "true"])
def test_task_that_says_itself_that_it_may_be_lost_is_meant(
    setting: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = new_app()
    app.conf.update(setting)
    install(app)
    app.task(name="shop.early", acks_late=False)(nothing)
    warn_of_early_acks(app)
    assert not caplog.records


# The registry, and what the app's own class of tasks has


class Registered(Task):
    name = "shop.registered"

    def run(self) -> None: ...


def test_instance_that_is_put_into_the_registry_is_covered() -> None:
    app = new_app()
    install(app, classify=True)
    app.tasks.register(Registered())
    task: Any = app.tasks["shop.registered"]
    assert isinstance(task, ResilientTask)
    assert isinstance(task, Registered)
    assert task.app is app
    assert task.policy_in_force.unmatched == "classify"


class Shops(Task):
    abstract = True
    acks_late = False

    def delay_on_commit(self) -> str:
        return f"{self.name} later"


class Own(ResilientTask):
    abstract = True


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("base", [ResilientTask, Own])
def test_base_of_ours_has_what_the_apps_own_tasks_have(
    base: type[ResilientTask], installed: bool
) -> None:
    app = new_app(task_cls=Shops)
    if installed:
        install(app)

    @app.task(base=base, name="shop.charge")
    def charge() -> None: ...

    assert charge.delay_on_commit() == "shop.charge later"
    assert isinstance(charge, base)
    assert charge.acks_late is True, "ours comes first where it was chosen by hand"


def test_djangos_tasks_keep_their_methods() -> None:
    app = new_app(task_cls="celery.contrib.django.task:DjangoTask")

    @app.task(base=ResilientTask)
    def charge() -> None: ...

    assert callable(charge.delay_on_commit)
    assert callable(charge.apply_async_on_commit)


# Who is told


@pytest.mark.parametrize("by_class", [False, True])
def test_celerys_warning_of_a_double_name_is_at_the_users_line(by_class: bool) -> None:
    app = new_app()
    install(app)
    app.finalize()

    @app.task(name="shop.registered", lazy=False)
    def first() -> None: ...

    def second() -> None: ...

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if by_class:
            app.register_task(Registered())
            line = inspect.currentframe().f_lineno
        else:
            app.task(name="shop.registered", lazy=False)(second)
            line = inspect.currentframe().f_lineno
    if not hasattr(app, "_warn_duplicate_task_name"):
        assert not caught, "this Celery does not warn"
        return
    (warning,) = caught
    assert warning.category.__name__ == "DuplicateTaskNameWarning"
    assert (warning.filename, warning.lineno) == (__file__, line - 1)


def test_task_with_a_strategy_of_its_own_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    app = new_app()
    install(app)

    @app.task(base=Buffered, name="shop.counts")
    def counts() -> None: ...

    app.tasks["shop.smuggled"] = Registered()
    warn_of_uncovered(app)
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 2
    assert said[0].startswith("not covered: shop.counts: its Strategy (Buffered.Strategy) takes")
    assert said[1].startswith("not covered: shop.smuggled: it is a stock Celery task")
    told = of_task(counts, Settings(), 1000)
    assert told["decides"].startswith(
        "not celery_resilience: its Strategy (Buffered.Strategy) takes"
    )
    assert "dead_letter_queue" not in told


def test_stock_tasks_that_are_not_meant_are_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    app, bare = new_app(), new_app()
    install(app, only=["cron.*"])
    for each in (app, bare):
        each.task(name="web.hit")(nothing)
        each.task(base=ResilientTask, name="shop.ours")(nothing)
        warn_of_uncovered(each)
    assert not caplog.records


def test_banner_says_that_we_are_there() -> None:
    app = new_app()
    app.conf.resilience_policies_by_name = {"shop.b*": Policy()}
    install(app)
    for name in ("shop.a", "shop.b", "shop.bb"):
        app.task(name=name)(nothing)
    worker: Any = SimpleNamespace(startup_info=lambda artlines: "Celery's\n")
    consumer = SimpleNamespace(app=app, controller=worker, conninfo=app.connection_for_read())
    settings = Settings.of(app)
    add_to_banner(consumer, settings, WorkerTransport(consumer, settings))
    banner = worker.startup_info(artlines=False)
    assert banner.startswith("Celery's\n -------------- [resilience]\n")
    lines = [line.strip() for line in banner.splitlines()[2:]]
    assert lines[0].startswith(".> version:")
    assert lines[1] == ".> broker:       memory: workers hold scheduled retries"
    assert lines[2] == ".> dead letters: dead_letter"
    assert lines[3].startswith(".> policies:     1 for 2 of ")


# What is refused


def test_install_wants_the_app_itself() -> None:
    with pytest.raises(TypeError, match=r"the Celery app itself, got 'shop'"):
        install("shop")


def test_dead_letter_queue_that_is_no_name_is_refused_where_it_is_written() -> None:
    app = new_app()
    with pytest.raises(ImproperlyConfigured, match=r"shop\.a: dead_letter_queue takes .* got 3"):
        app.task(base=ResilientTask, name="shop.a", dead_letter_queue=3, lazy=False)(nothing)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("resilence_redact", "resilience_redact"),
        ("resiliance_max_worker_losses", "resilience_max_worker_losses"),
        ("resilient_redact", "resilience_redact"),
        ("CELERY_RESILIENCE_REDACT", "resilience_redact"),
        ("resilience_redakt", "resilience_redact"),
    ],
)
def test_misspelt_setting_is_refused_whatever_part_is_wrong(key: str, meant: str) -> None:
    app = new_app()
    app.conf[key] = ["token"]
    with pytest.raises(ImproperlyConfigured, match=f"unknown setting {key}.*did you mean {meant}"):
        Settings.of(app)


def test_misspelt_setting_in_a_namespace_is_refused_with_it() -> None:
    app = new_app()
    config = SimpleNamespace(SHOP_RESILENCE_REDACT=["token"], RESILENCE_OF_ANOTHER=1)
    app.config_from_object(config, namespace="SHOP")
    with pytest.raises(ImproperlyConfigured, match="did you mean shop_resilience_redact"):
        Settings.of(app)


@pytest.mark.parametrize("key", ["resilient_model", "result_expires", "resources", "resilience"])
def test_settings_of_others_are_left_alone(key: str) -> None:
    app = new_app()
    app.conf[key] = 1
    Settings.of(app)


def test_unknown_tasks_letter_says_what_to_do() -> None:
    app = new_app()
    app.task(name="shop.charge")(nothing)
    assert "did you mean shop.charge?" in _no_such_task(KeyError("shop.chagre"), app)
    said = _no_such_task(KeyError("billing.tasks.nosuch"), app)
    assert "billing.tasks" in said
    assert "include=" in said
    assert "autodiscover_tasks()" in said


def test_explain_says_where_a_task_that_is_not_there_may_be() -> None:
    result = explain("nosuch.task")
    assert result.exit_code == 1
    assert "include=" in result.output
    assert "autodiscover_tasks()" in result.output
