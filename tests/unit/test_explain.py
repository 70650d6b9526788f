"""``celery resilience explain``: who decides, and what that comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_resilience import Policy, ResilientTask, install, on
from celery_resilience.cli.resilience import resilience
from celery_resilience.cli.standalone import main

app = Celery("explained", broker="memory://", set_as_current=False)


class Declined(Exception):
    pass


class Busy(ConnectionError):
    pass


@app.task(name="shop.sync", base=ResilientTask, shared=False)
def sync() -> None: ...


@app.task(
    name="shop.fetch", base=ResilientTask, shared=False, autoretry_for=(OSError,),
    retry_backoff=True, max_retries=5,
)  # fmt: skip
def fetch() -> None: ...


@app.task(
    name="shop.charge", base=ResilientTask, shared=False, throws=(KeyError,),
    dead_letter_queue="dead.{queue}",
    failure_policy=Policy(
        on(Declined).dead_letter(queue="declined"),
        on(KeyError).discard("gone"),
        on(Busy).retry(max_retries=20, delay=lambda exc: exc.wait),
        on(TimeoutError, ConnectionError).retry(max_retries=2, backoff=2, jitter=0.2),
        max_elapsed=3600,
    ),
)  # fmt: skip
def charge() -> None: ...


@app.task(name="shop.for_ever", base=ResilientTask, shared=False, max_retries=None)
def for_ever() -> None: ...


@app.task(name="shop.plain", shared=False)
def plain() -> None: ...


def explain(*arguments: str) -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(resilience, ["explain", *arguments], obj=context)


def told(*arguments: str) -> dict[str, Any]:
    result = explain(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    data: dict[str, Any] = json.loads(result.stdout)
    return data


@pytest.mark.parametrize(
    ("name", "verdict", "by_default"),
    [
        ("requests.exceptions.ConnectTimeout", "transient", "20 retries, after up to 1.5 s, 3 s"),
        ("KeyError", "permanent", "a dead letter at once"),
        ("http:503", "transient", "1 h 30 min in all on average"),
        ("RuntimeError", "unknown", "3 retries, after up to 1 s, 2 s, 4 s"),
        ("socket.gaierror", "transient", "1 retry, after up to 1.5 s"),
        ("http:429", "rate_limited", "uses up no retry"),
        ("celery_resilience.Discard", "permanent", "neither a retry nor a dead letter"),
        ("celery.exceptions.Retry", "unknown", "nothing: it is control flow"),
    ],
)
def test_exception_is_explained_by_its_name(name, verdict, by_default):
    data = told(name)
    assert data["verdict"] == verdict
    assert data["rule"]
    assert data["hint"]
    assert by_default in data["by_default"]
    assert data["hint"] in " ".join(explain(name).stdout.split())


def test_task_of_the_classifier_is_explained():
    data = told("shop.sync")
    assert (data["decides"], data["rules"], data["unmatched"]) == ("the classifier", [], "classify")
    assert (data["limits"]["max_retries"], data["limits"]["jitter"]) == (20, 0.5)
    assert (data["limits_of_unknown"]["max_retries"], data["limits_of_unknown"]["jitter"]) == (
        3, "full",
    )  # fmt: skip
    transient, unknown = data["schedules"]
    assert (transient["for"], transient["max_retries"]) == ("transient failures", 20)
    assert transient["horizon"]["nearly_certain"] >= 79 * 60
    assert unknown["for"] == "unknown failures"
    assert [retry["ceiling"] for retry in unknown["retries"]] == [1, 2, 4]
    assert [retry["p95"] for retry in unknown["retries"]] == [0.95, 1.9, 3.8]
    assert [retry["peak_per_second"] for retry in unknown["retries"]] == [1000, 500, 250]
    assert unknown["horizon"]["worst"] == 7
    assert data["dead_letter_queue"] == "dead_letter"


def test_schedule_has_both_horizons_and_who_waits_for_them():
    text = " ".join(explain("shop.sync").stdout.split())
    for part in (
        "Transient 20 retries (21 attempts), waits from 1 s to 10 min, times 2 each, ±50% jitter",
        "Unknown 3 retries (4 attempts), waits from 1 s to 10 min, times 2 each, full jitter",
        "1 h 30 min on average (1 h 19 min in 99 of 100 cases",
        "Whatever waits for the result (.get(), a chord) may wait as long.",
        "3.5 s on average (0.78 s in 99 of 100 cases, 0 s for certain",
    ):
        assert part in text, f"{part} is not in {text}"


def test_task_of_celerys_options_is_explained():
    data = told("shop.fetch", "--tasks", "10")
    assert data["decides"].startswith("Celery's own options")
    assert data["unmatched"] == "give_up"
    (one,) = data["schedules"]
    assert len(one["retries"]) == 5
    assert one["retries"][0]["peak_per_second"] == 10


def test_task_with_a_policy_is_explained():
    data = told("shop.charge")
    assert data["decides"] == "its failure_policy"
    assert data["dead_letter_queue"] == "dead.{queue}"
    assert data["expected"] == ["KeyError"]
    assert [(rule["rule"], rule["treatment"]) for rule in data["rules"]] == [
        ("rule 1 (Declined)", "dead_letter"),
        ("rule 2 (KeyError)", "discard"),
        ("rule 3 (Busy)", "retry"),
        ("rule 4 (TimeoutError, ConnectionError)", "retry"),
    ]
    busy, away, rest = data["schedules"]
    assert busy["delay_is_a_function"]
    assert [retry["shortest"] for retry in away["retries"]] == [1.6, 3.2]
    assert rest["for"] == "what no rule matches"


@pytest.mark.parametrize("name", ["sync", "fetch", "charge", "for_ever", "plain"])
def test_text_fits_80_columns(name, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    result = explain(f"shop.{name}")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"shop.{name}"
    assert max(map(len, lines)) <= 80


def test_text_has_it_all():
    text = " ".join(explain("shop.charge").stdout.split())
    for part in (
        "rule 1 (Declined): dead letter in declined",
        "rule 2 (KeyError): discard: gone",
        "rule 3 (Busy): retry: 20 retries (21 attempts), waits of what <lambda> says, within 1 h",
        "±20% jitter",
        "else: the classifier decides",
        "These are the first of 20 retries.",
        "the backoff stands in for it here",
        "Horizon: survives an outage of 6 s on average (5 s in 99 of 100 cases, 4.8 s "
        "for certain, never more than 7.2 s).",
        "Peak: when 1,000 tasks fail at once",
        "KeyError (throws)",
        "in dead.{queue}",
    ):
        assert part in text, f"{part} is not in {text}"


def test_horizon_is_the_deadline_where_retries_have_no_limit():
    assert told("shop.for_ever")["schedules"][0]["horizon"] == {
        "certain": 86400,
        "nearly_certain": 86400,
        "expected": 86400,
        "worst": 86400,
    }


def test_stock_task_is_not_decided_about():
    text = " ".join(explain("shop.plain").stdout.split())
    assert "Decides not celery_resilience" in text
    assert "base=ResilientTask" in text
    assert "retries" not in told("shop.plain")


def test_covered_task_that_states_nothing_has_self_retry_alone():
    installed = Celery("installed", broker="memory://", set_as_current=False)
    install(installed)

    @installed.task(name="shop.silent", shared=False)
    def silent() -> None: ...

    context = CLIContext(app=installed, no_color=True, workdir=None)
    result = CliRunner().invoke(resilience, ["explain", "shop.silent"], obj=context)
    text = " ".join(result.stdout.split())
    assert "Decides self.retry in its body alone" in text
    assert "install(app, classify=True)" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop.chagre", "there is no task shop.chagre; did you mean shop.charge?"),
        ("requests.exceptions.ConectTimeout", "did you mean ConnectTimeout?"),
        ("nonsense.Foo", "can't be imported"),
        ("http:999", "is no status of a failure"),
    ],
)
def test_unknown_name_is_refused_with_what_is_near(name, said):
    result = explain(name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


def test_unknown_verb_is_refused_with_what_is_near():
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(resilience, ["explian"], obj=context)
    assert result.exit_code == 2
    assert "explain" in result.stderr


def test_standalone_command_prints_its_version():
    from celery_resilience import __version__

    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"celery-resilience, version {__version__}\n"
