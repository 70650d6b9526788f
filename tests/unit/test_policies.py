"""Who decides about a task: the file, the task, a pattern, Celery's options, the classifier."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from click.testing import CliRunner

from celery_resilience import Policy, ResilientTask, install
from celery_resilience.settings import Settings
from celery_resilience.task.policies import apply_policies, policies_of
from celery_resilience.worker.flags import FLAGS, _flags, names
from tests.worker import ROOT

FILE = '[policies.file]\nmax_retries = 11\n[tasks]\n"shop.fetch" = "file"\n'


def app_with(**settings: Any) -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    app.conf.update(settings)
    return app


def task_of(app: Celery, name: str = "shop.fetch", **options: Any) -> Any:
    @app.task(name=name, lazy=False, **options)
    def fetch() -> None: ...

    return fetch


@pytest.mark.parametrize("given", [c for n in range(5) for c in combinations(range(4), n)])
def test_first_that_says_something_decides(given: tuple[int, ...], tmp_path: Path) -> None:
    """File, then the task's own, then a pattern, then Celery's options, then the classifier."""
    (tmp_path / "ops.toml").write_text(FILE)
    retries = {0: 11, 1: 12, 2: 13, 3: 14}
    app = app_with(
        **({"resilience_failure_policies": str(tmp_path / "ops.toml")} if 0 in given else {}),
        **({"resilience_policies_by_name": {"*.fetch": Policy(max_retries=13)}}
           if 2 in given else {}),
    )  # fmt: skip
    task = task_of(
        app,
        base=ResilientTask,
        max_retries=14 if 3 in given else 3,
        autoretry_for=(OSError,) if 3 in given else (),
        failure_policy=Policy(max_retries=12) if 1 in given else None,
    )
    assert task.policy_in_force.max_retries == (retries[given[0]] if given else 3)
    decides = policies_of(app).of(task).by
    words = ["ops.toml, for 'shop.fetch'", "its failure_policy", "by_name['*.fetch']", "", ""]
    assert decides.endswith(words[given[0] if given else 4])


def test_name_stands_for_the_policy_wherever_one_can_be_given() -> None:
    app = app_with(
        resilience_policies={"remote-call": Policy(max_retries=7)},
        resilience_policies_by_name={"*.remote_*": "remote-call"},
    )
    own = task_of(app, "shop.own", failure_policy="remote-call")
    other = task_of(app, "shop.remote_sync")
    assert own.policy_in_force == other.policy_in_force
    assert (own.policy_in_force.max_retries, own.policy_in_force.name) == (7, "remote-call")


def test_files_word_for_a_name_is_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "ops.toml").write_text("[policies.remote-call]\nmax_retries = 20\n")
    app = app_with(
        resilience_policies={"remote-call": Policy(max_retries=7)},
        resilience_policies_by_name={"*.remote_*": "remote-call"},
        resilience_failure_policies=str(tmp_path / "ops.toml"),
    )
    own = task_of(app, "shop.own", failure_policy="remote-call")
    assert own.policy_in_force.max_retries == 20
    assert task_of(app, "shop.remote_sync").policy_in_force.max_retries == 20
    assert policies_of(app).of(own).by.startswith("its failure_policy 'remote-call' of ")


def test_first_pattern_decides_and_a_name_behind_one_that_covers_it_is_refused() -> None:
    patterns = {"shop.fetch": Policy(max_retries=1), "shop.*": Policy(max_retries=2)}
    app = app_with(resilience_policies_by_name=patterns)
    assert task_of(app).policy_in_force.max_retries == 1
    assert task_of(app, "shop.pay").policy_in_force.max_retries == 2
    app = app_with(resilience_policies_by_name=dict(reversed(patterns.items())))
    with pytest.raises(ImproperlyConfigured, match=r"by_name\['shop.fetch'\] can never match: 's"):
        policies_of(app)


def test_same_in_the_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "ops.toml"
    path.write_text('[policies.a]\n[tasks]\n"shop.*" = "a"\n"shop.pay" = "a"\n')
    app = app_with(resilience_failure_policies=path)
    with pytest.raises(ImproperlyConfigured, match=r"ops\.toml, line 4: 'shop.pay' can never"):
        policies_of(app)


def test_policy_that_nobody_has_given_is_refused_with_who_names_it() -> None:
    shared = {"remote-call": Policy()}
    app = app_with(resilience_policies=shared)
    task_of(app, failure_policy="remotecall")
    with pytest.raises(
        ImproperlyConfigured,
        match=r"shop\.fetch: failure_policy names the policy 'remotecall'.*mean 'remote-call'\?",
    ):
        policies_of(app).check(app.tasks.values())
    app = app_with(resilience_policies=shared, resilience_policies_by_name={"a.*": "x"})
    with pytest.raises(ImproperlyConfigured, match=r"by_name\['a\.\*'\] names the policy 'x'"):
        policies_of(app)


def test_pattern_for_no_task_is_warned_of(caplog: Any, tmp_path: Path) -> None:
    (tmp_path / "ops.toml").write_text('[policies.a]\n[tasks]\n"shop.fetsh" = "a"\n')
    app = app_with(
        resilience_policies_by_name={
            "*.fetch": Policy(),
            "*.pay": Policy(),
            "celery.group": Policy(),
        },
        resilience_failure_policies=str(tmp_path / "ops.toml"),
    )
    task_of(app)
    with caplog.at_level(logging.WARNING):
        apply_policies(app, Settings.of(app)).check(app.tasks.values())
    assert [record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records] == [
        "resilience_policies_by_name['*.pay'] matches no task of this app",
        "resilience_policies_by_name['celery.group'] matches no task of this app; "
        "did you mean 'celery.map'?",
        "ops.toml, line 3: 'shop.fetsh' matches no task of this app; did you mean 'shop.fetch'?",
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("policies", [Policy()], "resilience_policies takes a dict from names to policies"),
        ("policies", {"a": "b"}, r"resilience_policies\['a'\] takes a Policy, got 'b'"),
        ("policies_by_name", {"a.*": 3}, r"by_name\['a.\*'\] takes a Policy or the name of one"),
        ("policies_by_name", {3: Policy()}, "takes patterns of task names as its keys, got 3"),
        ("failure_policies", "", "takes the path of a file, got ''"),
        ("failure_policies", 7, "takes the path of a file, got 7"),
        ("dead_letter_expired", "yes", "resilience_dead_letter_expired takes True or False"),
        ("enabled", 0, "resilience_enabled takes True or False, got 0"),
        ("polices", {}, "did you mean resilience_policies"),
    ],
)
def test_wrong_setting_is_refused_with_what_is_meant(name: str, value: Any, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        Settings.of(app_with(**{f"resilience_{name}": value}))


def test_settings_are_read_with_the_apps_namespace() -> None:
    """As in Django's settings: CELERY_RESILIENCE_..."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.config_from_object(
        SimpleNamespace(CELERY_RESILIENCE_MAX_WORKER_LOSSES=7, RESILIENCE_APP_VERSION="1"),
        namespace="CELERY",
    )
    assert Settings.of(app) == Settings(max_worker_losses=7)
    app.config_from_object(SimpleNamespace(CELERY_RESILIENCE_POLICES={}), namespace="CELERY")
    with pytest.raises(ImproperlyConfigured, match="did you mean resilience_policies"):
        Settings.of(app)


# Flags


def parsed(arguments: list[str], **environment: str) -> dict[str, Any]:
    """What the worker's flags come to, as Celery parses them."""
    found: dict[str, Any] = {}
    options: Any = sorted(app_with().user_options["worker"], key=lambda option: option.name)
    command = click.Command("worker", params=options, callback=lambda **kw: found.update(kw))
    result = CliRunner().invoke(
        click.Group(commands=[command]), ["worker", *arguments],
        auto_envvar_prefix="CELERY", env=environment,
    )  # fmt: skip
    if result.exit_code:
        raise ValueError(result.output)
    return found


def test_flags_that_are_not_given_leave_it_to_the_settings() -> None:
    assert set(parsed([]).values()) == {None}


@pytest.mark.parametrize(
    ("flag", "value", "means", "variable"),
    [
        ("dead_letter_queue", "dead.{queue}", "dead.{queue}", "other"),
        ("failure_policies", "/dev/null", "/dev/null", os.devnull),
        ("max_worker_losses", "7", 7, "8"),
        ("dead_letter_expired", None, True, "0"),
        ("no_resilience", None, True, "0"),
    ],
)
def test_flag_overrules_its_variable(
    flag: str, value: str | None, means: Any, variable: str
) -> None:
    given = [f"--{flag.replace('_', '-')}", *([] if value is None else [value])]
    name = f"CELERY_WORKER_{flag.upper()}"
    assert parsed(given)[flag] == means
    assert parsed(given, **{name: variable})[flag] == means
    assert parsed([], **{name: "1" if value is None else value})[flag] == means


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dead-letter-queue", "dead.{q}"], "only {queue} is filled in"),
        (["--dead-letter-queue", " "], "takes the name of a queue"),
        (["--failure-policies", "no-such-file.toml"], "does not exist"),
        (["--max-worker-losses", "0"], "0 is not in the range x>=1"),
    ],
)
def test_wrong_flag_is_refused_where_it_is_typed(arguments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="Invalid value") as caught:
        parsed(arguments)
    assert said in str(caught.value)


APP = """\
from celery import Celery
from click import Option
from celery_resilience import install

app = Celery("shop", broker="memory://")
app.user_options["worker"].add(Option(["--before"]))
install(app)
app.user_options["worker"].add(Option(["--after"]))
"""
CELERY = [sys.executable, "-m", "celery", "-A", "shop_app", "worker"]


def started(folder: Path, command: list[str], **environment: str) -> str:
    """What a command says that starts a worker of APP, or refuses to."""
    (folder / "shop_app.py").write_text(APP)
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100", **environment},
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", ["python -m celery", "celery", "app.worker_main"])
def test_every_way_to_start_a_worker_knows_the_flags(way: str, tmp_path: Path) -> None:
    """And those that the user has added, before or after ours."""
    main = "from shop_app import app; app.worker_main(['worker', '--help'])"
    said = started(tmp_path, {
        "python -m celery": [*CELERY, "--help"],
        "celery": [str(Path(sys.executable).with_name("celery")), *CELERY[3:], "--help"],
        "app.worker_main": [sys.executable, "-c", main],
    }[way])  # fmt: skip
    assert "Resilience Options:" in said
    for flag in ("--before", "--after", *(option.opts[0] for option in _flags())):
        assert len(re.findall(rf"^ *{flag}\b", said, re.MULTILINE)) == 1, said


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DEAD_LETTER_QUEUE", "dead.{q}", "only {queue} is filled in"),
        ("FAILURE_POLICIES", "no-such-file.toml", "does not exist"),
        ("MAX_WORKER_LOSSES", "none", "'none' is not a valid integer range"),
        ("DEAD_LETTER_EXPIRED", "perhaps", "'perhaps' is not a valid boolean"),
        ("NO_RESILIENCE", "perhaps", "'perhaps' is not a valid boolean"),
    ],
)
def test_wrong_variable_stops_the_worker(
    variable: str, value: str, said: str, tmp_path: Path
) -> None:
    assert said in started(tmp_path, CELERY, **{f"CELERY_WORKER_{variable}": value})


def test_program_that_sends_tasks_does_not_load_the_command_line(tmp_path: Path) -> None:
    """Celery's takes as long to load as all of ours."""
    look = "import sys, shop_app; print([m for m in sys.modules if m.startswith('celery.bin')])"
    assert started(tmp_path, [sys.executable, "-c", look]) == "[]\n"


def test_every_flag_says_its_setting_and_its_variable() -> None:
    for option in app_with().user_options["worker"]:
        setting = option.help.partition("[setting: resilience_")[2].rstrip("]")
        assert hasattr(Settings(), setting), option.name
        assert option.show_envvar
        assert option.help_group == "Resilience Options"


def test_flags_bear_the_names_of_their_settings():
    flags = {"--" + name.replace("_", "-") for name in FLAGS}
    assert flags | {"--no-resilience"} == names()
    assert set(FLAGS) <= {field.name for field in dataclasses.fields(Settings)}
