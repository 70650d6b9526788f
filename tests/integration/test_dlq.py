"""What an operator types about dead letters: nothing is hidden, and no all-clear is false."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import Queue

from celery_resilience.cli.resilience import resilience
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.filters import Filters
from celery_resilience.messages.headers import HEADER
from celery_resilience.operate import dead_letters as deadletters
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.policy.decision import Reason
from tests.integration.test_dead_letters import Shop, letter, message
from tests.servers import eventually
from tests.worker import ROOT, Broker

redis_only = pytest.mark.parametrize("broker", ["redis"], indirect=True)
rabbitmq_only = pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
both = pytest.mark.parametrize("broker", ["redis", "rabbitmq-classic"], indirect=True)


@pytest.fixture
def shop(broker: Broker) -> Iterator[Shop]:
    made = Shop(broker)
    yield made
    made.app.close()


# Which letters there are


@both
def test_letters_do_not_hide_one_another(shop):
    """Nor one without an id, nor one with another's, nor its equal."""
    ours = letter(1)
    text = ours.to_envelope().headers[HEADER]
    nameless = text.replace(ours.id, "")
    shop.put(
        ours.to_envelope(),
        message(2).with_header(text),  # with another's id, and other content
        ours.to_envelope(),  # the same one twice, as after a kill
        message(3).with_header(nameless),
        message(4).with_header(nameless),
        message(5),
        message(6),
    )
    with shop.letters() as letters:
        filed = list(letters.list())
        names = [one.name for one in filed]
        assert len(set(names)) == 7
        assert names[0] == ours.id
        assert names[2] == f"{ours.id}.2"
        assert [one.letter.task_id for one in filed] == [
            message(n).headers["id"] for n in (1, 2, 1, 3, 4, 5, 6)
        ]
        assert [letters.find(name).letter for name in names] == [one.letter for one in filed]
    shown = json.loads(shop.run("ls", "--json").stdout)
    assert [one["id"] for one in shown] == names
    listed = [line.split()[0] for line in shop.run("ls").stdout.splitlines()[1:]]
    assert listed[2] == f"{listed[0]}.2"
    assert (
        shop.run("drop", listed[1], listed[2], names[5], "--yes", "--because", "t").exit_code == 0
    )
    assert shop.ids() == [names[0], *names[3:5], names[6]]
    assert shop.run("replay", "--all", "--yes", "--to-queue", "mail").exit_code == 0
    assert shop.ids() == []
    assert len(shop.lying("mail")) == 4


@pytest.mark.parametrize("broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True)
def test_letter_that_rabbitmq_writes_again_is_another_one(shop):
    """A message of no app of ours, sent round by an operator until its cause is mended."""
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead_letter"}
    shop.declare("dead_letter")
    shop.declare("plain", **arguments)
    shop.put(message(1), queue="plain", declared=True)

    def reject() -> None:
        with shop.app.connection_for_read() as connection, connection.channel() as channel:
            taken = eventually(lambda: Queue("plain", exchange=None)(channel).get(accept=["json"]))
            taken.reject()

    reject()
    (first,) = eventually(shop.ids)
    assert shop.ids() == [first], "a look changes nothing"
    assert shop.run("replay", first, "--yes", "--to-queue", "plain").stdout == (
        "published 1, skipped 0, failed 0\n"
    )
    reject()
    (second,) = eventually(shop.ids)
    assert second != first
    with shop.letters() as letters:
        assert letters.find(second).letter.history.lineage == (first,)


@redis_only
def test_id_of_a_task_means_its_newest_letter(shop):
    old, new = (letter(1, at=time.time() - age) for age in (600, 60))
    shop.put(new.to_envelope(), old.to_envelope(), letter(2).to_envelope())
    task_id = message(1).headers["id"]
    assert json.loads(shop.run("show", task_id, "--json").stdout)["id"] == new.id
    assert shop.run("replay", task_id, "--yes").exit_code == 0
    assert old.id in shop.ids()
    assert new.id not in shop.ids()


# Listing


@redis_only
def test_output_for_a_program_is_not_cut(shop):
    """Names as long as they are, all letters, and of a traceback every line."""
    name = "shop.orders.payments.refunds.settle_everything_at_once_and_tell_nobody"
    error = ErrorRecord("shop.Timeout", "too slow " * 40, traceback="line\n" * 60 + "end")
    written = [letter(n, envelope=message(n, task=name), error=error) for n in range(25)]
    shop.put(*(one.to_envelope() for one in written))
    result = shop.run("ls")
    assert (result.stdout.count(name), result.stdout.count("too slow " * 39)) == (25, 25)
    assert "…" not in result.stdout
    assert result.stderr == ""
    assert len(json.loads(shop.run("ls", "--json").stdout)) == 25
    assert shop.run("show", written[0].id).stdout.count("line") == 60
    few = shop.run("ls", "--limit", "3", "--json")
    assert len(json.loads(few.stdout)) == 3
    assert few.stderr == "3 of 25 dead letters: --limit N or --limit all shows more.\n"


@both
def test_newest_letters_of_all_queues_come_first(shop):
    now = time.time()
    for n, age in enumerate([50, 10, 40]):
        shop.put(letter(n, at=now - age).to_envelope())
    shop.put(letter(7, at=now - 20).to_envelope(), queue="dead.other")

    @shop.app.task(shared=False)
    def stock() -> None: ...

    stock.dead_letter_queue = "dead.other"
    listed = json.loads(shop.run("ls", "--newest", "--json").stdout)
    assert [one["task_id"][-1] for one in listed] == ["1", "7", "2", "0"]
    listed = json.loads(shop.run("ls", "--newest", "--limit", "2", "--json").stdout)
    assert [one["task_id"][-1] for one in listed] == ["1", "7"]
    told = shop.run("ls", "--newest", "--limit", "3")
    assert told.stderr == "3 of 4 dead letters: --limit N or --limit all shows more.\n"


@redis_only
def test_filters_repeat_and_a_total_stands_behind_them(shop):
    for n, (task, reason) in enumerate(
        [("a.x", "exhausted"), ("b.x", "deadline"), ("c.x", "permanent"), ("a.y", "deadline")]
    ):
        one = letter(n, envelope=message(n, task=task), reason=Reason(reason))
        shop.put(one.to_envelope())

    def tasks(*filters: str) -> list[str]:
        return [one["task"] for one in json.loads(shop.run("ls", "--json", *filters).stdout)]

    assert tasks("--task", "a.*", "--task", "b.*") == ["a.x", "b.x", "a.y"]
    assert tasks("--reason", "deadline", "--reason", "permanent") == ["b.x", "c.x", "a.y"]
    assert tasks("--task", "a.*", "--reason", "deadline") == ["a.y"]
    assert tasks("--since", "1h", "--since", "0s") == []
    assert tasks("--since", "today", "--until", "now") == tasks()
    few = shop.run("ls", "--task", "a.*", "--task", "b.*", "--limit", "2")
    assert few.stderr == "2 of 3 dead letters: --limit N or --limit all shows more.\n"
    assert json.loads(shop.run("count", "--json", "--task", "a.*").stdout) == {"dead_letter": 2}


@both
def test_groups_are_causes_across_tasks(shop):
    slow = ErrorRecord("shop.Timeout", "too slow: token=s3cr3t", frame="shop.http.get")
    other = ErrorRecord("KeyError", "'x'", frame="shop.tasks.charge")
    for n, (task, error) in enumerate(
        [("charge", slow), ("refund", slow), ("charge", other), ("charge", slow)]
    ):
        shop.put(letter(n, envelope=message(n, task=task), error=error).to_envelope())
    big, small = json.loads(shop.run("groups", "--json").stdout)
    assert (big["count"], big["error"], big["frame"]) == (3, "shop.Timeout", "shop.http.get")
    assert [(one["task"], one["count"]) for one in big["tasks"]] == [("charge", 2), ("refund", 1)]
    assert small["count"] == 1
    assert "s3cr3t" not in shop.run("groups").stdout
    lines = shop.run("groups").stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["GROUP", big["group"][:8], "2"]
    # One word, for all verbs: a group, or one task's part of it.
    charge = big["tasks"][0]["fingerprint"]
    for name, number in ((big["group"][:6], 3), (charge, 2), (charge[:8], 2)):
        assert len(json.loads(shop.run("ls", "--json", "--group", name).stdout)) == number
        dry = shop.run("replay", "--group", name, "--dry-run")
        assert dry.stdout.endswith(f"would replay {number}\n")
    task_id = message(0).headers["id"]
    shown = json.loads(shop.run("show", task_id, "--json").stdout)
    assert shown["group"] == big["group"]
    told = f"{big['group'][:8]}; {charge[:8]} for this task"
    assert told in shop.run("show", task_id).stdout
    assert shop.run("replay", "--group", big["group"], "--yes").stdout.startswith("published 3,")
    assert len(shop.ids()) == 1


@redis_only
@pytest.mark.parametrize("removed", [1, 99, 100, 101, 250, 340])
def test_letters_that_others_take_out_meanwhile_hide_no_other(shop, removed):
    """Of 700 letters, of which the oldest are dropped after 350 were read."""
    written = shop.bury(700)
    with shop.letters() as letters, shop.letters() as others:
        looking = letters.list()
        read = [next(looking).letter.id for _ in range(350)]
        assert len(list(others.drop("all", limit=removed))) == removed
        new = shop.bury(3)
        read += [filed.letter.id for filed in looking]
    assert read == written + new


# Dropping


def test_drop_removes_the_chosen_letters_and_no_other(shop, caplog):
    caplog.set_level("INFO", "celery_resilience")
    written = shop.bury(120)
    dry = shop.run("drop", "--all", "--dry-run", "--yes", "--because", "x")
    assert dry.stdout.endswith("would drop 120\n")
    assert shop.run("drop", written[3], "--yes").stdout == "dropped 1, skipped 0, failed 0\n"
    told = shop.run(
        "drop", "--args", "0=7", "--args", "0=7", "--yes", "--because", "sent twice", "--json"
    )
    said = json.loads(told.stdout)
    assert [(one["id"], one["result"]) for one in said.pop("letters")] == [(written[7], "dropped")]
    assert said == {"dropped": 1, "skipped": 0, "failed": 0, "because": "sent twice"}
    assert f"dropped dead letter {written[7]} of shop.charge" in caplog.text
    assert "sent twice" in caplog.text
    left = [*written[:3], *written[4:7], *written[8:]]
    assert shop.ids() == left
    with shop.letters() as letters:
        done = letters.drop("all", limit=110)
        assert [str(one.result) for one in done] == ["dropped"] * 110
    assert shop.ids() == left[110:]
    assert shop.lying("shop") == []


@redis_only
def test_drop_of_several_without_a_terminal_needs_a_reason(shop):
    written = shop.bury(3)
    for arguments in (["--all", "--yes"], ["--task", "shop.*"], [*written[:2], "--yes"]):
        result = shop.run("drop", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "pass --yes and --because" in result.stderr
    assert shop.run("drop", "--all", "--because", "t").exit_code == 1, "nobody says yes"
    assert shop.run("drop", "--all", "--because", "t", "--yes").exit_code == 0
    assert shop.ids() == []


@redis_only
def test_letters_are_dropped_or_replayed_once_by_two_operators(shop):
    written = shop.bury(250)
    with shop.letters() as ours, shop.letters() as theirs:
        one, two = ours.replay("all"), theirs.drop("all")
        done = []
        for changes in (one, two, one, two):
            done += [r for _, r in zip(range(70), changes)]  # noqa: B905
        done += [*one, *two]
    changed = [r.letter.id for r in done if str(r.result) in ("published", "dropped")]
    assert sorted(changed) == sorted(written)
    published = [r for r in done if str(r.result) == "published"]
    assert len(shop.lying("shop")) == len(published)


# What is not known


@contextmanager
def somebody_looks(shop: Shop) -> Iterator[Callable[[], None]]:
    """Another process's look, which lasts until it is ended."""
    with shop.letters() as theirs:
        looking = theirs.list()
        next(looking)
        yield looking.close
        looking.close()


@rabbitmq_only
def test_count_while_another_command_reads_is_no_all_clear(shop, monkeypatch):
    monkeypatch.setattr(deadletters, "_PATIENCE", 0.0)
    (written,) = shop.bury(1)
    with somebody_looks(shop):
        for arguments in (["count"], ["count", "--fail-if-any"], ["ls"], ["show", written],
                          ["groups"], ["replay", "--all", "--yes"]):  # fmt: skip
            result = shop.run(*arguments)
            assert result.exit_code == 3, arguments
            assert "Not known: dead_letter: another command is reading letters" in result.stderr
        assert "at least 0" in shop.run("count").stdout
        assert json.loads(shop.run("count", "--json").stdout) == {"dead_letter": None}
    assert shop.run("count", "--fail-if-any").exit_code == 1
    assert shop.run("drop", "--all", "--yes", "--because", "t").exit_code == 0
    assert shop.run("count", "--fail-if-any").exit_code == 0


@rabbitmq_only
def test_count_waits_for_a_command_that_is_soon_over(shop, monkeypatch):
    shop.bury(2)
    with somebody_looks(shop) as end, shop.letters() as letters:
        asked = []
        monkeypatch.setattr(time, "sleep", lambda seconds: asked or asked.append(end()))
        (tally,) = letters.tally(patience=60)
    assert (tally.number, tally.unknown) == (2, "")
    assert asked


@redis_only
def test_count_on_redis_is_true_while_another_command_reads(shop):
    shop.bury(1)
    with somebody_looks(shop):
        assert shop.run("count", "--fail-if-any").exit_code == 1
        assert json.loads(shop.run("count", "--json").stdout) == {"dead_letter": 1}


@both
def test_policy_file_that_is_broken_does_not_hide_letters(shop, tmp_path):
    """But it may name queues that nobody knows now."""
    path = tmp_path / "ops.toml"
    path.write_text("[policies.x]\nmax_retrys = 3\n")
    shop.app.conf.resilience_failure_policies = str(path)
    (written,) = shop.bury(1)
    for arguments in (["ls"], ["show", written], ["count"]):
        result = shop.run(*arguments)
        assert result.exit_code == 3
        assert "ops.toml, line 2" in result.stderr
    assert written[:8] in shop.run("ls").stdout
    assert shop.run("count", "--fail-if-any").exit_code == 1
    assert shop.run("replay", written, "--yes").stdout == "published 1, skipped 0, failed 0\n"
    assert shop.run("count", "--fail-if-any").exit_code == 3


# Where else letters lie


@redis_only
def test_letters_of_another_setting_are_mentioned_and_found(shop):
    with shop.app.connection_for_write() as connection:
        from celery_resilience.brokers.connect import open_broker

        open_broker(connection).remember_letters("old.letters")
    (old,) = shop.bury(1, queue="old.letters")
    for arguments in (["ls"], ["count"]):
        result = shop.run(*arguments)
        assert result.exit_code == 0
        assert "1 dead letter in old.letters, which no setting names: --all-queues" in result.stderr
    missing = shop.run("show", old)
    assert missing.exit_code == 1
    assert "old.letters" in missing.stderr
    counted = json.loads(shop.run("count", "--all-queues", "--json").stdout)
    assert counted == {"dead_letter": 0, "old.letters": 1}
    assert old[:8] in shop.run("ls", "--all-queues").stdout
    assert shop.run("replay", old, "--all-queues", "--yes").exit_code == 0
    assert shop.run("ls").stderr == ""
    assert shop.run("ls", "--all-queues", "--dead-letter-queue", "x").exit_code == 2


@both
def test_letters_in_the_default_queue_are_mentioned(shop):
    """The setting was given after the first of them."""
    shop.bury(2)
    shop.app.conf.resilience_dead_letter_queue = "dead.shop"
    assert "2 dead letters in dead_letter, which no setting names" in shop.run("ls").stderr


# Without an app, and before a worker starts


def celery(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_command_without_an_app_says_so(tmp_path):
    result = celery(tmp_path, "dlq", "ls")
    assert result.returncode == 2
    assert "no app was given: celery -A YOUR_APP dlq ls" in result.stderr
    assert "amqp" not in result.stderr


@redis_only
def test_broker_is_as_good_as_an_app(tmp_path, broker):
    result = celery(tmp_path, "-b", broker.broker_url, "dlq", "count")
    assert (result.returncode, result.stdout) == (0, "dead_letter  0\n"), result.stderr


def test_policy_file_is_checked_before_a_worker_reads_it(tmp_path):
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.charge", shared=False)
    def charge() -> None: ...

    def check(path: Path, *more: str) -> Result:
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(resilience, ["check", str(path), *more], obj=context)

    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    text = "[policies.remote]\nmax_retries = 3\n[tasks]\n'shop.*' = 'remote'\n"
    good.write_text(text + "'mail.*' = 'remote'\n")
    bad.write_text(text.replace("'remote'", "'remot'"))
    result = check(good)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "shop.* -> remote: shop.charge\n" in result.stdout
    assert "mail.* -> remote: no task of this app\n" in result.stdout
    assert json.loads(check(good, "--json").stdout)["policies"] == ["remote"]
    for path, said in ((bad, "bad.toml, line 4"), (tmp_path / "none.toml", "can't be read")):
        result = check(path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
    app.close()


def test_filters_of_the_command_are_those_of_the_api(redis_broker):
    """As the verbs take them."""
    app = Celery("shop", broker=redis_broker.broker_url, set_as_current=False)
    with DeadLetters(app) as letters:
        filters = Filters(task=["a", "b"], error="x", group="3f", reason=Reason.PERMANENT)
        assert list(letters.list(filters=filters)) == list(letters.groups(filters)) == []
    app.close()
