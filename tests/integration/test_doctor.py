"""The doctor finds what nobody else does, says what mends it, and is quiet where all is well."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_resilience import ResilientTask
from celery_resilience.brokers.rabbitmq import queues as rabbits
from celery_resilience.brokers.rabbitmq.delay import UNROUTABLE, USUAL, Delay, level_name
from celery_resilience.brokers.redis import leases
from celery_resilience.cli.resilience import resilience
from celery_resilience.messages.headers import ASTRAY, DUE
from celery_resilience.operate import diagnosis, doctor, doctor_rabbitmq, doctor_redis
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.diagnosis import Diagnosis, Report, WorkerSeen, _seen
from celery_resilience.operate.doctor import examine
from celery_resilience.operate.retries import Retries
from tests.integration.test_retries import Queues, message, queues, waiting_in
from tests.servers import eventually
from tests.worker import Broker, Worker

__all__ = ["queues"]

redis_only = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.3)


def found(queues: Queues, check: Callable[..., Any], **told: Any) -> list[str]:
    """What *check* finds, where what it was *told* is known already."""
    return seen(queues.app, check, **told)[0]


def seen(app: Celery, check: Callable[..., Any], **told: Any) -> tuple[list[str], Diagnosis]:
    with Diagnosis(app, "celery -A shop") as looked:
        looked.__dict__.update(told)
        return [f"{one.what} | {one.impact} | {one.fix}" for one in check(looked)], looked


@redis_only
def test_doctor_finds_nothing_where_all_is_well(broker, client, start_worker, monkeypatch):
    monkeypatch.setattr(diagnosis, "PATIENCE", 5.0)
    start_worker("tests.apps.shop", broker, env=client.env)
    client.send("parks", "parks")
    eventually(lambda: waiting_in(client) == {"shop": 1})
    assert examine(client.app) == Report()


@redis_only
def test_retries_for_a_queue_without_consumers_are_found(queues):
    queues.many(2)
    queues.wait(message(7, queue="mail"))
    (one,) = found(queues, doctor.unconsumed, consumed={"shop": ("w@1",)})
    assert "1 retry waits for mail, which no worker consumes" in one
    assert "celery -A shop worker -Q mail" in one
    assert "celery -A shop retries bury --queue mail" in one
    assert found(queues, doctor.unconsumed, consumed={"shop": ("a",), "mail": ("b",)}) == []


@redis_only
def test_silence_of_workers_is_not_a_queue_without_consumers(queues):
    queues.many(2)
    report = examine(queues.app)
    assert report.findings == ()
    assert report.unchecked == ("queues that workers consume: no worker answered within 0.3 s",)


@redis_only
def test_overdue_retries_are_found(queues):
    queues.many(3, left=-20.0)
    assert found(queues, doctor.overdue) == []
    queues.many(1, left=-90.0)
    (one,) = found(queues, doctor.overdue)
    assert "for shop have been due for up to 9" in one
    assert "no worker with celery_resilience is alive" in one
    assert "celery -A shop retries release --all" in one
    queues.redis.zadd("celery_resilience:workers", {"alive": queues.now() + 20})
    (one,) = found(queues, doctor.overdue)
    assert "into their logs" in one


@redis_only
def test_messages_held_by_dead_workers_are_found(queues):
    held = {"dead": queues.now() - 60, "just now": queues.now() - 5, "alive": queues.now() + 20}
    queues.redis.zadd("celery_resilience:workers", held)
    for worker in held:
        queues.redis.hset(f"celery_resilience:held:{worker}", "tag", "shop\n{}")
    # Soon after the server's start every lease has run out.
    (one,) = eventually(lambda: found(queues, doctor_redis.held_by_the_dead), timeout=30)
    assert "1 messages are held by 1 workers" in one
    assert "celery -A shop retries release --all" in one


@redis_only
def test_stock_worker_that_executes_letters_is_found(broker, client, start_worker, monkeypatch):
    worker: Worker = start_worker("tests.apps.stock", broker, queues="dead_letter", env=client.env)
    monkeypatch.setattr(diagnosis, "PATIENCE", 5.0)
    (finding,) = examine(client.app).findings
    assert finding.check == "letters_are_executed"
    assert worker.name in finding.what
    assert "out of its -Q" in finding.fix


def test_unchecked_has_what_rabbitmq_cannot_tell(broker: Broker) -> None:
    app = Celery("shop", broker=broker.broker_url, set_as_current=False)
    report = examine(app)
    assert report.findings == ()
    if broker.name != "redis":
        assert report.unchecked[0].startswith("scheduled retries: RabbitMQ delays")
    app.close()


def run(app: Celery, *arguments: str) -> Any:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(resilience, ["doctor", *arguments], obj=context)


@redis_only
def test_command_prints_findings_and_exits_with_1(queues, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    result = run(queues.app)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "Not checked: queues that workers consume: no worker answered within 0.3 s.\n"
        "No problems found. Not everything could be checked.\n"
    )
    queues.many(1, left=-90.0)
    result = run(queues.app)
    assert result.exit_code == 1
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "  Fix: start one" in result.stdout
    assert result.stdout.endswith("\n1 problem found. Not everything could be checked.\n")
    result = run(queues.app, "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["check"]) == (1, "overdue")


def test_broker_that_is_away_is_exit_code_69():
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    result = run(app)
    assert (result.exit_code, result.stdout) == (69, "")
    assert "can't reach redis://" in result.stderr
    app.close()


# Dead letters


def test_open_dead_letters_are_found(client):
    with client.app.connection_for_write() as connection:
        if connection.transport.driver_type == "amqp":
            rabbits.make(connection, "dead_letter", {})
    for number in range(3):
        client.put("dead_letter", f"letter {number}")
    (one,) = eventually(lambda: seen(client.app, doctor.letters)[0])
    assert "3 dead letters are open: 3 in dead_letter" in one
    assert "celery -A shop dlq ls" in one


# Tasks and workers


def test_tasks_that_are_not_covered_are_found():
    app = Celery("shop", broker="memory://", set_as_current=False)

    def body() -> None: ...

    app.task(name="mail.stock", shared=False)(body)
    for name, said in {
        "mail.fine": {},
        "mail.early": {"acks_late": False},
        "mail.batch": {"Strategy": "celery_batches:Strategy"},
    }.items():
        app.task(name=name, base=ResilientTask, shared=False, **said)(body)
    found, looked = seen(app, doctor.not_covered)
    assert [one.partition(":")[0] for one in found] == ["mail.batch"]
    assert [note.partition(":")[0] for note in looked.notes] == ["mail.stock", "mail.early"]
    assert "acks_late is False" in looked.notes[1]


def test_workers_without_a_covered_task_are_noted():
    app = Celery("shop", broker="memory://", set_as_current=False)
    workers = {"ours@h": WorkerSeen(ours=3, stock=1), "stock@h": WorkerSeen(stock=4)}
    _, looked = seen(app, doctor.stock_workers, workers=workers)
    assert [note.partition(":")[0] for note in looked.notes] == ["stock@h"]


@redis_only
def test_workers_tell_queues_transport_and_tasks(broker, client, start_worker, monkeypatch):
    monkeypatch.setattr(diagnosis, "PATIENCE", 5.0)
    worker: Worker = start_worker("tests.apps.shop", broker, env=client.env)
    with Diagnosis(client.app) as looked:
        assert looked.workers is not None
        answered = looked.workers[worker.name]
        assert answered.queues == ("shop", "other")
        assert (answered.transport, answered.why) == ("own", "")
        assert answered.ours > 5
        assert answered.stock == 0
        assert list(doctor_redis.without_a_lease(looked)) == []
        looked.__dict__["workers"] = {**looked.workers, "late@h": WorkerSeen(ours=1)}
        (one,) = doctor_redis.without_a_lease(looked)
        assert "2 workers run covered tasks" in one.what
        assert "but only 1 hold a lease" in one.what


@redis_only
def test_transports_of_workers_are_noted(queues):
    old = _seen([{"name": "shop"}], {"broker": {"transport": "redis"}}, [])
    refused = {"redis_transport": "kombu", "why": "Redis refuses LINDEX on shop"}
    fallen = _seen([{"name": "shop"}], {"resilience": refused}, [])
    ours = _seen([{"name": "shop"}], {"resilience": {"redis_transport": "own", "why": ""}}, [])
    named = _seen([{"name": "shop"}], {"broker": {"transport": "resilient-sentinel"}}, [])
    elsewhere = WorkerSeen((), "kombu", "it takes from nothing")
    workers = {"a@h": old, "b@h": fallen, "c@h": ours, "d@h": named, "e@h": elsewhere}
    _, looked = seen(queues.app, doctor_redis.takes_which_way, workers=workers)
    both, why = looked.notes
    assert "2 workers take through our own transport, 2 through kombu's (a@h, b@h)" in both
    assert why.startswith("b@h takes through kombu's transport")
    assert why.endswith("Redis refuses LINDEX on shop")
    for one in (old, ours):
        _, looked = seen(queues.app, doctor_redis.takes_which_way, workers={"a@h": one})
        assert looked.notes == []


# Redis


@pytest.fixture
def as_user(queues):
    """The app's broker, and a user of it who is allowed what *rules* say."""
    apps: list[Celery] = []

    def make(*rules: str) -> Celery:
        queues.redis.execute_command("ACL", "SETUSER", "few", "reset", "on", ">secret", *rules)
        url = queues.app.conf.broker_url.replace("://", "://few:secret@", 1)
        app = Celery("shop", broker=url, set_as_current=False)
        app.conf.update(
            {k: queues.app.conf[k] for k in ("broker_transport_options", "task_default_queue")}
        )
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()
    queues.redis.execute_command("ACL", "DELUSER", "few")


@redis_only
def test_missing_rights_are_found(as_user):
    found, _ = seen(as_user("+@all", "allkeys", "allchannels"), doctor_redis.rights)
    assert found == []
    kombus = ("~_kombu*", "~unacked*", "~shop*", "~*.pidbox*", "allchannels")
    ((one,), _) = seen(
        as_user("+@all", "-hset", *kombus, "~celery_resilience:*"), doctor_redis.rights
    )
    assert "HSET on celery_resilience:held:none" in one
    assert "LPUSH, RPUSH, RPOP" in one
    assert "on dead_letter" in one
    assert "celery_resilience:workers" not in one
    _, looked = seen(as_user("+@all", "-@dangerous", "allkeys", "allchannels"), doctor_redis.rights)
    assert looked.notes[0].startswith("INFO is not allowed")
    found, looked = seen(as_user("+@all", "-multi", "allkeys", "allchannels"), doctor_redis.rights)
    assert found == []
    assert looked.unchecked[0].startswith("the permissions of the broker's user: ")


@redis_only
def test_messages_held_by_dead_workers_are_found_without_info(queues, as_user, monkeypatch):
    """Without INFO: not known is not none, and nobody who lives is robbed."""
    monkeypatch.setattr(leases, "GRACE", 1.0)
    until = {"dead": queues.now() - 60, "away": queues.now() - 60, "alive": queues.now() + 20}
    queues.redis.zadd("celery_resilience:workers", until)
    for worker in until:
        queues.redis.hset(f"celery_resilience:held:{worker}", "tag", "shop\n{}")
    app = as_user("+@all", "-@dangerous", "allkeys", "allchannels")
    renewed = threading.Timer(
        0.3, queues.redis.zadd, ("celery_resilience:workers", {"away": queues.now() + 30})
    )
    renewed.start()
    with Retries(app) as waiting:
        assert waiting.orphans() == {"dead": 1}
        assert waiting.reclaim() == 1
    renewed.join()


@redis_only
def test_messages_held_by_an_unknown_worker_are_found(queues):
    queues.redis.zadd("celery_resilience:workers", {"known": queues.now() + 20})
    for worker in ("known", "unknown"):
        queues.redis.hset(f"celery_resilience:held:{worker}", "tag", "shop\n{}")
    told = eventually(lambda: found(queues, doctor_redis.held_by_the_dead), timeout=30)
    assert len(told) == 1
    assert told[0].startswith("1 messages are held by 1 ")


# RabbitMQ

rabbit_only = pytest.mark.parametrize("broker", ["rabbitmq-quorum"], indirect=True)


@rabbit_only
def test_delay_that_is_incomplete_is_found(client):
    app = client.app
    assert seen(app, doctor_rabbitmq.delay_is_whole)[0] == [], "nothing was made yet"
    with app.connection_for_write() as connection:
        rabbits.make(connection, "work", {})
        rabbits.make(connection, "dead_letter", {})
        Delay().prepare(connection, set(), "work", "dead_letter", USUAL)
        assert seen(app, doctor_rabbitmq.delay_is_whole)[0] == []
        with connection.channel() as channel:
            channel.queue_delete(level_name(3))
            channel.exchange_delete(DUE)
        (one,) = seen(app, doctor_rabbitmq.delay_is_whole)[0]
        assert f"the exchange {DUE}, the queue {level_name(3)}" in one
        assert UNROUTABLE not in one


@rabbit_only
def test_messages_astray_are_found(client):
    assert seen(client.app, doctor_rabbitmq.astray)[0] == []
    with client.app.connection_for_write() as connection:
        rabbits.make(connection, ASTRAY, {})
    client.put(ASTRAY, "a retry")
    (one,) = eventually(lambda: seen(client.app, doctor_rabbitmq.astray)[0])
    assert one.startswith(f"1 message is in {ASTRAY}")


@rabbit_only
def test_dead_letter_queues_that_may_lose_letters_are_found(client):
    app, check = client.app, doctor_rabbitmq.letters_can_be_read
    assert seen(app, check)[0] == [], "there is none yet"
    with app.connection_for_write() as connection:
        version = int(connection.default_channel.connection.server_properties["version"][0])
        rabbits.make(connection, "dead_letter", {})
        app.conf.task_default_queue_type = "classic"
        found, looked = seen(app, check)
        assert found == []
        assert looked.unchecked == [
            "whether RabbitMQ is a cluster: dead_letter is classic and would be lost with its node"
        ]
        app.conf.task_default_queue_type = "quorum"
        (one,) = seen(app, check)[0]
        assert "dead_letter is a classic queue" in one
        connection.default_channel.queue_delete("dead_letter")
        connection.default_channel.queue_declare(
            "dead_letter", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )
        found, looked = seen(app, check)
        assert found == []
        assert [
            note.startswith("dead_letter is a quorum queue with a delivery limit")
            for note in looked.notes
        ] == [True] * (version >= 4)
        connection.default_channel.queue_delete("dead_letter")
        rabbits.make(connection, "dead_letter", {"x-queue-type": "quorum"})
        found, looked = seen(app, check)
        assert (found, looked.notes, looked.unchecked) == ([], [], [])


@rabbit_only
def test_letters_that_another_command_reads_are_unchecked(client):
    with client.app.connection_for_write() as connection:
        rabbits.make(connection, "dead_letter", {})
    client.put("dead_letter", "a letter")
    with DeadLetters(client.app) as letters:
        looking = letters.list()
        next(looking)
        _, looked = seen(client.app, doctor.letters)
        assert looked.unchecked[0].startswith("the number of letters in dead_letter: ")
        looking.close()
