"""Looking at dead letters takes nothing out, and a replay moves each once: on every broker."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import Queue

from celery_resilience import ResilientTask
from celery_resilience.cli.dlq import dlq
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.filters import Filters
from celery_resilience.messages.history import Attempt, History
from celery_resilience.operate.dead_letters import (
    AmbiguousId,
    DeadLetters,
    NoSuchId,
    ReplayResult,
    Unreachable,
)
from celery_resilience.policy.decision import Reason
from tests.servers import eventually
from tests.worker import ROOT, Broker

redis_only = pytest.mark.parametrize("broker", ["redis"], indirect=True)
rabbitmq_only = pytest.mark.parametrize(
    "broker", ["rabbitmq-classic", "rabbitmq-quorum"], indirect=True
)


class Shop:
    """An app on the test's broker, and what its workers would have left there."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.app = Celery("shop", broker=broker.broker_url, set_as_current=False)
        arguments = {"x-queue-type": broker.queue_type}
        self.app.conf.update(
            task_default_queue="shop",
            task_queues=[Queue(name, queue_arguments=arguments) for name in ("shop", "mail")],
            resilience_redact=["token"],
        )
        if "redis" not in broker.name:
            # A quorum queue may forget what it has not confirmed when its publisher hangs up.
            self.app.conf.broker_transport_options = {"confirm_publish": True}
        self.declare("shop", "mail")

    def declare(self, *names: str, **arguments: Any) -> None:
        with self.app.connection_for_write() as connection:
            for name in names:
                given = {"x-queue-type": self.broker.queue_type, **arguments}
                Queue(name, exchange=None, queue_arguments=given)(connection).queue_declare()

    def put(self, *envelopes: Envelope, queue: str = "dead_letter", declared: bool = False) -> None:
        """Put messages into *queue*, in this order."""
        if not declared:
            self.declare(queue)
        with self.app.connection_for_write() as connection:
            producer = connection.Producer(auto_declare=False)
            for one in envelopes:
                producer.publish(
                    one.body, exchange="", routing_key=queue, headers=dict(one.headers),
                    content_type=one.content_type, content_encoding=one.content_encoding,
                    **one.properties,
                )  # fmt: skip

    def bury(self, number: int, queue: str = "dead_letter", **changes: Any) -> list[str]:
        """Put *number* letters into *queue*; their ids, the oldest first."""
        letters = [letter(n, **changes) for n in range(number)]
        self.put(*(one.to_envelope() for one in letters), queue=queue)
        return [one.id for one in letters]

    def letters(self, **options: Any) -> DeadLetters:
        return DeadLetters(self.app, **options)

    def ids(self, **options: Any) -> list[str]:
        with self.letters(**options) as letters:
            return [filed.letter.id for filed in letters.list()]

    def lying(self, queue: str) -> list[Any]:
        """The messages in *queue*, taken out."""
        found = []
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            bound = Queue(queue, exchange=None)(channel)
            while (message := bound.get(accept=["json"])) is not None:
                found.append(message)
                message.ack()
        return found

    def run(self, *arguments: str, input: str | None = None) -> Result:
        """``celery -A shop dlq ARGUMENTS``, in this process."""
        context = CLIContext(app=self.app, no_color=True, workdir=None)
        return CliRunner().invoke(dlq, arguments, obj=context, input=input)


def message(number: int = 0, **headers: Any) -> Envelope:
    told = {
        "task": "shop.charge",
        "id": str(uuid.UUID(int=number)),
        "retries": 3,
        "eta": None,
        "argsrepr": f"({number}, {{'token': 's3cr3t'}})",
        "kwargsrepr": "{}",
        "tenant": "acme",
    }
    body = json.dumps([[number], {}, {}]).encode()
    return Envelope(
        body, "application/json", "utf-8", {**told, **headers}, {"priority": 0}, queue="shop"
    )


def letter(number: int = 0, **changes: Any) -> DeadLetter:
    attempt = Attempt(1, time.time() - 60, 0.5, "w@1", "shop.Timeout", "too slow", "transient", "r")
    facts: dict[str, Any] = {
        "history": History().add(attempt),
        "error": ErrorRecord("shop.Timeout", f"too slow: token=s3cr3t {number}"),
        "rule": "rule 1 (Timeout)",
    }
    received = changes.pop("envelope", None) or message(number)
    return replace(DeadLetter.write(Reason.EXHAUSTED, received, **facts), **changes)


@pytest.fixture
def shop(broker: Broker) -> Iterator[Shop]:
    made = Shop(broker)
    yield made
    made.app.close()


# Looking


def test_listing_takes_nothing_out_and_changes_no_order(shop):
    """Whatever is looked at, in whole or in part, all letters are there as before."""
    written = shop.bury(120)
    with shop.letters() as letters:
        assert letters.count() == {"dead_letter": 120}
        assert [filed.letter.id for filed in letters.list(limit=7)] == written[:7]
        assert letters.find(written[50]).letter.task == "shop.charge"
        next(letters.list())
        assert [filed.letter.id for filed in letters.list()] == written
        assert letters.count() == {"dead_letter": 120}
    assert shop.ids() == written


def test_listing_that_is_killed_loses_and_reorders_nothing(shop, tmp_path):
    written = shop.bury(30)
    script = tmp_path / "look.py"
    script.write_text(
        "import sys, time\n"
        "from celery import Celery\n"
        "from celery_resilience.operate.dead_letters import DeadLetters\n"
        "for filed in DeadLetters(Celery(broker=sys.argv[1])).list():\n"
        "    print(filed.letter.id, flush=True)\n"
        "    time.sleep(0.01 if filed.letter.id != sys.argv[2] else 60)\n"
    )
    command = [sys.executable, script, shop.broker.broker_url, written[20]]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout is not None
        seen = [looking.stdout.readline().strip() for _ in range(21)]
        looking.send_signal(signal.SIGKILL)
    assert seen == written[:21]
    eventually(lambda: shop.ids() == written, message="all letters are back in their order")


@pytest.mark.filterwarnings(r"ignore:\s*The 'queue' task attribute is deprecated")
def test_queues_are_those_that_settings_tasks_and_rules_name(shop):
    @shop.app.task(base=ResilientTask, shared=False, dead_letter_queue="dead.{queue}")
    def charge() -> None: ...

    @shop.app.task(base=ResilientTask, shared=False, queue="stock")
    def count() -> None: ...

    (there,) = shop.bury(1, queue="dead.mail")
    with shop.letters() as letters:
        assert letters.queues == ("dead.mail", "dead.shop", "dead.stock", "dead_letter")
        assert letters.find(there).queue == "dead.mail"
        assert [r.result for r in letters.replay(there)] == [ReplayResult.PUBLISHED]
    with shop.letters(dead_letter_queue="x.{queue}", queues=["a", "b"]) as letters:
        assert letters.queues == ("x.a", "x.b")
    with shop.letters(dead_letter_queue="elsewhere") as letters:
        assert letters.queues == ("elsewhere",)
        assert letters.count() == {"elsewhere": 0}
        assert list(letters.list()) == []


def test_letter_is_found_by_the_beginning_of_its_id(shop):
    written = [letter(id=name) for name in ("aaaa11112222", "aaaa11113333", "bbbb11112222")]
    shop.put(*(one.to_envelope() for one in written))
    with shop.letters() as letters:
        assert letters.find("bbbb").letter.id == "bbbb11112222"
        assert letters.find("aaaa11112222").letter.id == "aaaa11112222"
        with pytest.raises(AmbiguousId, match="aaaa11112222, aaaa11113333"):
            letters.find("aaaa1")
        with pytest.raises(NoSuchId, match="no dead letter cccc in dead_letter"):
            letters.find("cccc")
        assert letters.find("b").letter.id == "bbbb11112222"
        found = letters.find_all(["bbbb", "aaaa11113333"])
        assert [filed.letter.id for filed in found] == ["bbbb11112222", "aaaa11113333"]


def test_iterations_are_one_at_a_time(shop):
    shop.bury(2)
    with shop.letters() as letters:
        looking = letters.list()
        next(looking)
        with pytest.raises(RuntimeError, match="finish the iteration"):
            letters.count()
        looking.close()
        assert letters.count() == {"dead_letter": 2}


def test_pickle_in_a_letter_is_never_opened(shop):
    """It may lie there because a worker refused to open it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("it was unpickled",))

    body = pickle.dumps({"task": Bomb(), "id": "1"})
    bad = message().with_header(None)
    bad = replace(bad, body=body, content_type="application/x-python-serialize", headers={})
    bad = replace(bad, content_encoding="binary")
    written = letter(envelope=bad, reason=Reason.UNDECODABLE)
    shop.put(written.to_envelope())
    for arguments in (["ls"], ["show", written.id], ["show", written.id, "--json"]):
        assert shop.run(*arguments).exit_code == 0
    assert shop.run("replay", written.id, "--yes").exit_code == 0
    with shop.app.connection_for_read() as connection, connection.channel() as channel:
        (again,) = [Queue("shop", exchange=None)(channel).get(no_ack=True)]
        assert Envelope.received(again, "shop").body == body


# Replaying


def test_replay_publishes_and_then_removes(shop):
    """The message is the one received, in the queue that it came from, with its retries back."""
    written = shop.bury(3)
    other = letter(7, envelope=replace(message(7), queue="mail"))
    shop.put(other.to_envelope())
    with shop.letters() as letters:
        done = list(letters.replay([written[1], other.id]))
        assert [(r.letter.id, r.to, str(r.result)) for r in done] == [
            (written[1], "shop", "published"),
            (other.id, "mail", "published"),
        ]
    assert shop.ids() == [written[0], written[2]]
    (sent,), (mailed,) = shop.lying("shop"), shop.lying("mail")
    assert mailed.payload == [[7], {}, {}]
    assert sent.payload == [[1], {}, {}]
    again = Envelope.received(sent, "shop")
    headers = dict(again.headers)
    history = History.loads(headers.pop("celery_resilience"))
    assert (history.lineage, history.count) == ((written[1],), 0)
    assert headers == {**message(1).headers, "retries": 0}
    assert again.properties["priority"] == 0


def test_replay_of_all_keeps_the_order_and_ends(shop):
    """Letters that are written meanwhile, as when the cause has not been mended, are left."""
    written = shop.bury(230)
    with shop.letters() as letters:
        done = []
        for replayed in letters.replay("all"):
            done.append(replayed.letter.id)
            if len(done) % 10 == 0:
                shop.bury(10)
    assert done == written
    assert len(shop.lying("shop")) == 230
    eventually(lambda: len(shop.ids()) == 230, message="the others are all there")


def test_replay_skips_letters_written_after_it_began(shop):
    """Even where it lies before what the replay means, as a letter of a higher priority may."""
    written = shop.bury(3, at=time.time() + 60)
    with shop.letters() as letters:
        done = list(letters.replay("all"))
        assert {(str(r.result), r.why) for r in done} == {
            ("skipped", "written after this replay started")
        }
        gone = list(letters.drop("all"))
        assert {(str(d.result), d.why) for d in gone} == {
            ("skipped", "written after this command started")
        }
        assert [str(r.result) for r in letters.replay(written)] == ["published"] * 3


def test_replay_of_all_stops_at_its_limit(shop):
    written = shop.bury(5)
    with shop.letters() as letters:
        assert [r.letter.id for r in letters.replay("all", limit=2)] == written[:2]
    assert shop.ids() == written[2:]


def test_filters_choose_what_is_listed_and_replayed(shop):
    """Whatever lies between them stays, in its order."""
    written = shop.bury(130)
    mail = [letter(n, envelope=message(n, task="mail.send")) for n in range(200, 203)]
    shop.put(*(one.to_envelope() for one in mail))
    written += shop.bury(5, at=time.time() - 7200)
    with shop.letters() as letters:
        few = letters.list(limit=2, filters=Filters(task="shop.*", since=time.time() - 600))
        assert [filed.letter.id for filed in few] == written[:2]
        replay = letters.replay("all", filters=Filters(task="mail.*"), limit=2)
        assert [r.letter.id for r in replay] == [one.id for one in mail[:2]]
        replay = letters.replay("all", filters=Filters(until=time.time() - 600))
        assert [r.letter.id for r in replay] == written[130:]
        replay = letters.replay("all", filters=Filters(args=(("0", "7"),)))
        assert [r.letter.id for r in replay] == [written[7]]
    assert shop.ids() == [*written[:7], *written[8:130], mail[2].id]


def test_replay_that_is_not_finished_leaves_the_rest(shop):
    written = shop.bury(5)
    with shop.letters() as letters:
        replay = letters.replay("all")
        assert [next(replay).letter.id for _ in range(2)] == written[:2]
        replay.close()
        assert [filed.letter.id for filed in letters.list()] == written[2:]


def test_undecodable_message_is_replayed_as_it_was_received(shop):
    """A mended worker may be able to read it."""
    received = replace(message(), body=b"\xff\x00 garbage", headers={}, content_type="x/y")
    written = letter(envelope=received, reason=Reason.UNDECODABLE)
    shop.put(written.to_envelope())
    assert shop.run("replay", "--all", "--yes").output == "published 1, skipped 0, failed 0\n"
    (again,) = shop.lying("shop")
    assert Envelope.received(again, "shop").body == b"\xff\x00 garbage"
    assert again.content_type == "x/y"


def test_replay_of_a_message_without_a_queue_needs_one(shop):
    """What a broker put there has no letter's header."""
    written = shop.bury(150)
    shop.put(message(1))
    (bare,) = set(shop.ids()) - {*written, *shop.bury(1)}
    with shop.letters() as letters:
        done = list(letters.replay("all"))
        failed = [r for r in done if r.result is ReplayResult.FAILED]
        assert [r.letter.id for r in failed] == [bare]
        assert "--to-queue" in failed[0].why
        assert len(done) == len(written) + 2
        assert [filed.letter.id for filed in letters.list()] == [bare]
        assert [str(r.result) for r in letters.replay(bare, to_queue="mail")] == ["published"]
        with pytest.raises(ValueError, match="is a dead-letter queue"):
            list(letters.replay("all", to_queue="dead_letter"))
    assert [m.payload for m in shop.lying("mail")] == [[[1], {}, {}]]


@rabbitmq_only
def test_letter_whose_queue_was_deleted_stays_with_a_hint(shop):
    gone = letter(1, envelope=replace(message(1), queue="gone"))
    shop.put(letter(0).to_envelope(), gone.to_envelope(), letter(2).to_envelope())
    with shop.letters() as letters:
        done = list(letters.replay("all"))
        assert [str(r.result) for r in done] == ["published", "failed", "published"]
        assert "there is no queue gone" in done[1].why
        assert "--to-queue" in done[1].why
    assert shop.ids() == [gone.id]
    assert shop.run("replay", gone.id, "--to-queue", "mail", "--yes").exit_code == 0
    assert len(shop.lying("mail")) == 1
    assert len(shop.lying("shop")) == 2


@redis_only
def test_letter_that_another_process_has_removed_is_skipped(shop):
    written = shop.bury(3)
    with shop.letters() as letters:
        replay = letters.replay("all")
        assert next(replay).result is ReplayResult.PUBLISHED
        with shop.letters() as others:
            assert [str(r.result) for r in others.replay(written[1])] == ["published"]
        rest = list(replay)
    assert [(str(r.result), r.why) for r in rest] == [
        ("skipped", "another process has removed it"),
        ("published", ""),
    ]
    assert len(shop.lying("shop")) == 3


@redis_only
def test_letters_are_all_replayed_by_two_operators(shop):
    """Each letter is replayed once by one of them, though they take out each other's."""
    written = shop.bury(450)
    with shop.letters() as ours, shop.letters() as theirs:
        one, two = ours.replay("all"), theirs.replay("all")
        done = []
        for replay in (one, two, one, two, one):
            done += [r for _, r in zip(range(130), replay)]  # noqa: B905
        done += [*one, *two]
    replayed = [r.letter.id for r in done if r.result is ReplayResult.PUBLISHED]
    assert sorted(replayed) == sorted(written)
    assert len(shop.lying("shop")) == 450


@redis_only
def test_letters_of_every_priority_are_seen_and_keep_it(shop):
    for number, priority in enumerate([0, 9, 3, 9]):
        envelope = replace(message(number), properties={"priority": priority})
        shop.put(letter(number, envelope=envelope).to_envelope())
    with shop.letters() as letters:
        assert letters.count() == {"dead_letter": 4}
        assert len(list(letters.list())) == 4
        assert [str(r.result) for r in letters.replay("all")] == ["published"] * 4
        assert letters.count() == {"dead_letter": 0}
    assert sorted(m.properties["priority"] for m in shop.lying("shop")) == [0, 3, 9, 9]


def test_unreachable_broker_is_named_without_its_password():
    app = Celery("shop", broker="redis://:s3cr3t@127.0.0.1:1/0", set_as_current=False)
    with pytest.raises(Unreachable, match="can't reach redis://:") as caught:
        DeadLetters(app).count()
    assert "s3cr3t" not in str(caught.value)
    app.close()


# The command line


@pytest.mark.usefixtures("terminal")
def test_ls_fits_the_screen(shop, monkeypatch):
    long_name = message(1, task="shop.orders.payments.refunds.settle_everything_at_once")
    wide = ErrorRecord("shop.Überlauf", "漢字 \x1b[31m too\nlong " * 20)
    written = [letter(0), letter(1, envelope=long_name, error=wide)]
    shop.put(*(one.to_envelope() for one in written))
    result = shop.run("ls")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["ID", "AGE", "TASK", "REASON", "ATTEMPTS", "ERROR"]
    assert [line[:8] for line in lines] == [one.id[:8] for one in written]
    assert all(len(line) <= 80 for line in [heading, *lines])
    assert "Timeout: too slow: tok" in lines[0]
    assert "…verything_at_once" in lines[1]
    assert "\x1b" not in result.stdout
    monkeypatch.setenv("COLUMNS", "100")
    assert "Timeout: too slow: token=***" in shop.run("ls").stdout.splitlines()[1]


@pytest.mark.usefixtures("terminal")
def test_ls_says_when_there_is_more_and_when_there_is_nothing(shop):
    result = shop.run("ls")
    assert (result.exit_code, result.stdout) == (0, "No dead letters in dead_letter.\n")
    shop.bury(25)
    result = shop.run("ls")
    assert len(result.stdout.splitlines()) == 21
    assert result.stderr == "20 of 25 dead letters: --limit N or --limit all shows more.\n"
    for enough in ("30", "all"):
        assert len(shop.run("ls", "--limit", enough).stdout.splitlines()) == 26


def test_json_is_all_that_stdout_gets(shop):
    written = shop.bury(3)
    listed = json.loads(shop.run("ls", "--json", "--limit", "2").stdout)
    assert [one["id"] for one in listed] == written[:2]
    assert listed[0]["message"] == "too slow: token=*** 0"
    shown = json.loads(shop.run("show", written[2][:6], "--json").stdout)
    assert shown["reason"] == "exhausted"
    assert shown["arguments"] == "args=(2, {'token': ***}) kwargs={}"
    assert shown["headers"] == {"tenant": "acme"}
    assert [attempt["number"] for attempt in shown["history"]] == [1]
    assert json.loads(shop.run("count", "--json").stdout) == {"dead_letter": 3}
    dry = json.loads(shop.run("replay", "--all", "--dry-run", "--json").stdout)
    assert [one["id"] for one in dry] == written
    done = json.loads(shop.run("replay", "--all", "--yes", "--json").stdout)
    assert [one["result"] for one in done.pop("letters")] == ["published"] * 3
    assert done == {"published": 3, "skipped": 0, "failed": 0}
    assert json.loads(shop.run("ls", "--json").stdout) == []


def test_verbs_take_filters(shop):
    (mail,) = written = [letter(1, envelope=message(1, task="mail.send"), reason=Reason.DEADLINE)]
    shop.put(*(one.to_envelope() for one in written))
    shop.bury(4)
    chosen = json.loads(shop.run("ls", "--json", "--task", "mail.*").stdout)
    assert [one["id"] for one in chosen] == [mail.id]
    assert shop.run("ls", "--error", "KeyError").stdout == "No such dead letters in dead_letter.\n"
    few = shop.run("ls", "--task", "shop.*", "--limit", "3")
    assert few.stderr == "3 of 4 dead letters: --limit N or --limit all shows more.\n"
    for wrong in (["--reason", "bad"], ["--since", "soon"], ["--args", "customer"]):
        assert shop.run("ls", *wrong).exit_code == 2
    asked = shop.run("replay", "--reason", "deadline")
    assert "1 dead letter to replay: not a terminal, cannot prompt" in asked.stderr
    assert shop.run("replay", mail.id, "--task", "x").exit_code == 2
    dry = shop.run("replay", "--error", "Timeout", "--since", "1h", "--limit", "3", "--dry-run")
    assert dry.stdout.endswith("would replay 3\n")
    done = shop.run("replay", "--reason", "deadline", "--yes")
    assert done.stdout == "published 1, skipped 0, failed 0\n"
    done = shop.run("replay", "--args", "0=2", "--all", "--yes")
    assert done.stdout == "published 1, skipped 0, failed 0\n"
    assert len(shop.ids()) == 3


@pytest.mark.usefixtures("terminal")
def test_show_prints_all_about_a_letter(shop):
    try:
        try:
            raise KeyError("token=s3cr3t")
        except KeyError as cause:
            raise ValueError("no " * 100) from cause
    except ValueError as exc:
        error = ErrorRecord.of(exc)
    history = History(lineage=("abcdef123456",))
    for number in range(1, 15):
        attempt = Attempt(
            number, time.time() - 100 + number, 0.25, "w@1", "shop.Timeout", "too slow",
            "transient", "rule", delay=None if number == 14 else 2.5,
        )  # fmt: skip
        history = history.add(attempt)
    written = letter(
        error=error, history=history, hint="it will pass", worker="w@1", app_version="1.2.3",
        kind="transient", verdict_rule="network.timeout", category="network",
    )  # fmt: skip
    shop.put(written.to_envelope())
    result = shop.run("show", written.id)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for told in (
        f"Dead letter {written.id} in dead_letter", "shop.charge", "exhausted: every retry",
        "rule 1 (Timeout)", "it will pass", "w@1, app 1.2.3", "14, the first", "4 more",
        "Timeout: too slow", "again in 2.5 s", "dead letter\n", "abcdef123456", "tenant: acme",
        "args=(0, {'token': ***})", "KeyError: 'token=***", "The above exception was the direct",
        f"dlq replay {written.id}",
    ):  # fmt: skip
        assert told in result.stdout, f"{told} is not in\n{result.stdout}"
    assert "s3cr3t" not in result.stdout


def test_exit_codes(shop):
    assert shop.run("count", "--fail-if-any").exit_code == 0
    (written,) = shop.bury(1)
    assert shop.run("count", "--fail-if-any").exit_code == 1
    assert shop.run("show", "nothing").exit_code == 1
    assert shop.run("replay", "nothing", "--yes").exit_code == 1
    for wrong in (
        ["show"], ["replay"], ["replay", written, "--all"], ["replay", written, "--limit", "1"],
        ["lst"], ["replay", "--all", "--to-queue", "dead_letter"],
    ):  # fmt: skip
        assert shop.run(*wrong).exit_code == 2, wrong
    shop.app.conf.resilience_dead_leter_queue = "x"
    result = shop.run("ls")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "did you mean resilience_dead_letter_queue?" in result.stderr


def test_broker_that_is_away_is_exit_code_69():
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    context = CLIContext(app=app, no_color=True, workdir=None)
    result = CliRunner().invoke(dlq, ["count"], obj=context)
    assert (result.exit_code, result.stdout) == (69, "")
    assert "can't reach redis://" in result.stderr
    assert "127.0.0.1:1/0: " in result.stderr
    app.close()


def test_replay_without_a_terminal_does_not_prompt(shop):
    (written,) = shop.bury(1)
    result = shop.run("replay", written, input="y\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pass --yes" in result.stderr
    dry = shop.run("replay", "--all", "--dry-run", "--yes")
    assert dry.exit_code == 0
    assert dry.stdout.endswith("would replay 1\n")
    assert shop.ids() == [written]
    result = shop.run("replay", "--all", "--yes")
    assert (result.exit_code, result.stdout) == (0, "published 1, skipped 0, failed 0\n")
    assert result.stderr == "", "no progress is drawn where nobody watches"
    assert shop.run("replay", "--all", "--yes").stdout == "published 0, skipped 0, failed 0\n"


@redis_only
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_replay_on_a_terminal_prompts(shop, tmp_path, answer, code):
    """The question is about how many, from where and where to; no is no."""
    import pty

    shop.bury(2)
    main, other = pty.openpty()
    try:
        with celery(tmp_path, shop, "dlq", "replay", "--all", stdin=other, stderr=other) as asking:
            said = b""
            while b"[y/N]" not in said:
                said += os.read(main, 1000)
            os.write(main, f"{answer}\n".encode())
            out, _ = asking.communicate(timeout=30)
    finally:
        os.close(main)
        os.close(other)
    question = " ".join(said.decode().split())
    assert "Replay 2 dead letters of dead_letter, each to the queue that it came from?" in question
    assert asking.returncode == code
    assert out == ("published 2, skipped 0, failed 0\n" if answer == "y" else "")
    assert len(shop.ids()) == (0 if answer == "y" else 2)


@redis_only
def test_queue_can_be_named_for_all_verbs_or_for_one(shop):
    (written,) = shop.bury(1, queue="elsewhere")
    for arguments in (
        ["--dead-letter-queue", "elsewhere", "ls"],
        ["ls", "--dead-letter-queue", "elsewhere"],
        ["--dead-letter-queue", "other", "ls", "--dead-letter-queue", "elsewhere"],
    ):
        assert written[:8] in shop.run(*arguments).stdout
    counts = shop.run("count", "--dead-letter-queue", "dead.{queue}", "--json").stdout
    assert json.loads(counts) == {"dead.mail": 0, "dead.shop": 0}


@redis_only
def test_command_is_known_to_celery(shop, tmp_path):
    """Through the entry point, with a preload option of the app's own, and in colour if asked."""
    (written,) = shop.bury(1)
    with celery(tmp_path, shop, "--no-color", "dlq", "ls") as listing:
        out, _ = listing.communicate(timeout=30)
    assert listing.returncode == 0
    assert written[:8] in out
    assert "\x1b" not in out


def celery(folder: Path, shop: Shop, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """``celery -A its_app ARGUMENTS`` as a process of its own."""
    (folder / "its_app.py").write_text(
        "import os\n"
        "from celery import Celery\n"
        "from click import Option\n"
        "app = Celery('shop', broker=os.environ['BROKER_URL'])\n"
        "app.conf.task_default_queue = 'shop'\n"
        "app.user_options['preload'].add(Option(('--tenant',)))\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "BROKER_URL": shop.broker.broker_url}
    options = {"stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "its_app", *arguments],
        env=env, cwd=folder, stdout=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
