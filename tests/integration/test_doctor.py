"""The doctor finds what nobody else does, says what mends it, and is quiet where all is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_resilience import doctor
from celery_resilience.cli.resilience import resilience
from celery_resilience.doctor import Report, Ward, examine
from tests.integration.test_retries import Queues, message, queues, waiting_in
from tests.servers import eventually
from tests.worker import Broker, Worker

__all__ = ["queues"]

redis_only = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE", 0.3)


def found(queues: Queues, check: Callable[..., Any], **told: Any) -> list[str]:
    """What *check* finds, of a ward that knows what it was *told*."""
    ward = Ward(queues.app, "celery -A shop")
    ward.__dict__.update(told)
    with ward.retries:
        return [f"{one.what} | {one.mend}" for one in check(ward)]


@redis_only
def test_where_all_is_well_nothing_is_found(broker, client, start_worker, monkeypatch):
    monkeypatch.setattr(doctor, "_PATIENCE", 5.0)
    start_worker("tests.apps.shop", broker, env=client.env)
    client.send("parks", "parks")
    eventually(lambda: waiting_in(client) == {"shop": 1})
    assert examine(client.app) == Report()


@redis_only
def test_retries_for_a_queue_that_nobody_consumes(queues):
    queues.many(2)
    queues.wait(message(7, queue="mail"))
    (one,) = found(queues, doctor.unconsumed, consumed={"shop": ("w@1",)})
    assert "1 retry waits for mail, which no worker consumes" in one
    assert "celery -A shop worker -Q mail" in one
    assert "celery -A shop retries bury --queue mail" in one
    assert found(queues, doctor.unconsumed, consumed={"shop": ("a",), "mail": ("b",)}) == []


@redis_only
def test_that_nobody_answers_is_not_that_nobody_consumes(queues):
    queues.many(2)
    report = examine(queues.app)
    assert report.findings == ()
    assert report.unknown == ("what workers consume: none answered within 0.3 s",)


@redis_only
def test_retries_that_nobody_moves(queues):
    queues.many(3, left=-20.0)
    assert found(queues, doctor.overdue) == []
    queues.many(1, left=-90.0)
    (one,) = found(queues, doctor.overdue)
    assert "for shop have been due for up to 9" in one
    assert "no worker of ours is alive" in one
    assert "celery -A shop retries release --all" in one
    queues.redis.zadd("celery_resilience:workers", {"alive": queues.now() + 20})
    (one,) = found(queues, doctor.overdue)
    assert "into their logs" in one


@redis_only
def test_what_dead_workers_hold(queues):
    held = {"dead": queues.now() - 60, "just now": queues.now() - 5, "alive": queues.now() + 20}
    queues.redis.zadd("celery_resilience:workers", held)
    for worker in held:
        queues.redis.hset(f"celery_resilience:held:{worker}", "tag", "shop\n{}")
    # Soon after the server's start every lease has run out.
    (one,) = eventually(lambda: found(queues, doctor.held_by_the_dead), timeout=30)
    assert "1 messages are held by 1 of our workers" in one
    assert "celery -A shop retries release --all" in one


@redis_only
def test_a_stock_worker_that_executes_letters(broker, client, start_worker, monkeypatch):
    worker: Worker = start_worker("tests.apps.stock", broker, queues="dead_letter", env=client.env)
    monkeypatch.setattr(doctor, "_PATIENCE", 5.0)
    (finding,) = examine(client.app).findings
    assert finding.check == "letters_are_executed"
    assert worker.name in finding.what
    assert "out of its -Q" in finding.mend


def test_what_rabbitmq_can_not_tell_is_said(broker: Broker) -> None:
    app = Celery("shop", broker=broker.broker_url, set_as_current=False)
    report = examine(app)
    assert report.findings == ()
    if broker.name != "redis":
        assert report.unknown[0].startswith("which retries wait: RabbitMQ delays")
    app.close()


def run(app: Celery, *arguments: str) -> Any:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(resilience, ["doctor", *arguments], obj=context)


@redis_only
def test_the_command_says_what_was_found_and_exits_with_it(queues, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    result = run(queues.app)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "Not known: what workers consume: none answered within 0.3 s.\nNothing is wrong.\n"
    )
    queues.many(1, left=-90.0)
    result = run(queues.app)
    assert result.exit_code == 1
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "  To mend it: start one" in result.stdout
    assert result.stdout.endswith("\n1 finding.\n")
    result = run(queues.app, "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["check"]) == (1, "overdue")


def test_a_broker_that_is_away_is_exit_code_69():
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    result = run(app)
    assert (result.exit_code, result.stdout) == (69, "")
    assert "can't reach redis://" in result.stderr
    app.close()
