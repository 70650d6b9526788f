"""Waiting retries can be seen, and each is moved once: on Redis; what others can tell is told."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import Queue
from kombu.utils.json import dumps

from celery_resilience import ResilientTask
from celery_resilience.brokers.connect import open_broker
from celery_resilience.brokers.rabbitmq.broker import AmqpBroker
from celery_resilience.cli.retries import retries
from celery_resilience.messages.envelope import Envelope, seconds_until
from celery_resilience.messages.filters import Filters
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.ids import AmbiguousId, NoSuchId
from celery_resilience.operate.retries import NotListed, Retries
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker

redis_only = pytest.mark.parametrize("broker", ["redis"], indirect=True)
rabbitmq_only = pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)

SEPARATOR = "\x06\x16"


class Queues:
    """An app on the test's Redis, and the retries that its workers would have put there."""

    def __init__(self, broker: Broker, prefix: str = "") -> None:
        self.app = Celery("shop", broker=broker.broker_url, set_as_current=False)
        self.app.conf.update(
            task_default_queue="shop",
            task_queues=[Queue("shop"), Queue("mail")],
            resilience_redact=["token"],
        )
        self.app.conf.broker_transport_options = {"global_keyprefix": prefix}
        self.prefix = prefix
        self.redis = redis.Redis.from_url(broker.redis_url, decode_responses=True)

    def close(self) -> None:
        self.redis.close()
        self.app.close()

    def wait(self, *envelopes: Envelope, left: float = 600.0, step: int = 0) -> list[str]:
        """Let retries wait, each a second longer than the one before; their task ids."""
        pipe = self.redis.pipeline()
        for n, one in enumerate(envelopes):
            key = f"{one.queue}{SEPARATOR}{step}" if step else one.queue
            name = f"{self.prefix}celery_resilience:waiting"
            payload, due = dumps(one.to_wire(str(uuid.uuid4()), one.queue)), self.now() + left + n
            pipe.zadd(f"{name}:{key}", {payload: due})
            pipe.zadd(name, {key: due}, lt=True)
        pipe.execute()
        return [one.headers["id"] for one in envelopes]

    def now(self) -> float:
        seconds, micros = self.redis.time()
        return seconds + micros / 1e6

    def many(self, number: int, **options: Any) -> list[str]:
        return self.wait(*(message(n) for n in range(number)), **options)

    def lying(self, queue: str, step: int = 0) -> list[dict[str, Any]]:
        """The messages in *queue*, the oldest first."""
        key = f"{queue}{SEPARATOR}{step}" if step else queue
        return [json.loads(m) for m in reversed(self.redis.lrange(self.prefix + key, 0, -1))]

    def waiting(self) -> list[str]:
        with Retries(self.app) as waiting:
            return [retry.task_id for retry in waiting.list()]

    def run(self, *arguments: str, group: Any = retries) -> Result:
        """``celery -A shop retries ARGUMENTS``, in this process."""
        context = CLIContext(app=self.app, no_color=True, workdir=None)
        return CliRunner().invoke(group, arguments, obj=context)


def message(number: int = 0, queue: str = "shop", **changes: Any) -> Envelope:
    headers = {
        "task": "shop.charge",
        "id": str(uuid.UUID(int=number << 96 | number)),
        "retries": 1,
        "eta": None,
        "argsrepr": f"({number}, {{'token': 's3cr3t'}})",
        "kwargsrepr": "{}",
        "tenant": "acme",
    }
    attempt = Attempt(
        1, time.time() - 60, 0.5, "w@1", "shop.Timeout", f"too slow: token=s3cr3t {number}",
        "transient", "network.timeout", delay=660.0,
    )  # fmt: skip
    headers[HEADER] = History().add(attempt).dumps()
    envelope = Envelope(
        json.dumps([[number], {"n": number}, {}]).encode(), "application/json", "utf-8",
        {**headers, **changes.pop("headers", {})}, {"priority": 0}, queue=queue,
    )  # fmt: skip
    return replace(envelope, **changes)


@pytest.fixture
def queues(broker: Broker) -> Iterator[Queues]:
    made = Queues(broker)
    yield made
    made.close()


# Looking


@redis_only
@pytest.mark.parametrize("prefix", ["", "tenant:"])
def test_listing_finds_every_queue_and_changes_nothing(broker, prefix):
    queues = Queues(broker, prefix)
    ids = queues.many(250)
    ids += queues.wait(message(900, queue="mail"))
    ids += queues.wait(message(901, properties={"priority": 6}), step=6)
    before = {key: queues.redis.dump(key) for key in queues.redis.scan_iter()} if not prefix else {}
    with Retries(queues.app) as waiting:
        assert waiting.count() == {"mail": 1, "shop": 251}
        assert sorted(retry.task_id for retry in waiting.list()) == sorted(ids)
        first = next(waiting.list(limit=1, filters=Filters(queue="mail")))
        assert (first.task, first.queue, first.letter.history.count) == ("shop.charge", "mail", 1)
        assert 590 < first.left <= 600
        assert first.failed_at == pytest.approx(time.time() - 59.5, abs=5)
        of_shop = list(waiting.list(filters=Filters(queue="shop")))
        assert [r.task_id for r in of_shop if r.task_id != ids[-1]] == ids[:250]
    for key, dumped in before.items():
        assert queues.redis.dump(key) == dumped
    queues.close()


@redis_only
def test_retry_is_found_by_the_beginning_of_its_task_id(queues):
    ids = queues.wait(*(message(n, headers={"id": f"order-{n}"}) for n in range(10, 13)))
    queues.wait(message(10, headers={"id": "order-10"}, queue="mail"))
    with Retries(queues.app) as waiting:
        assert [r.task_id for r in waiting.find_all(["order-11"])] == [ids[1]]
        assert {r.queue for r in waiting.find_all(["order-10"])} == {"mail", "shop"}
        with pytest.raises(AmbiguousId, match="order-10, order-11, order-12"):
            waiting.find_all(["orde"])
        with pytest.raises(NoSuchId, match="no scheduled retry order-2 in this broker"):
            waiting.find_all(["order-12", "order-2"])
        with pytest.raises(AmbiguousId, match="order-10, order-11, order-12"):
            waiting.find_all(["o"])


@redis_only
def test_entry_that_is_no_message_is_shown_and_blocks_nothing(queues):
    queues.redis.zadd("celery_resilience:waiting:shop", {"garbage": 1.0})
    (good,) = queues.many(1)
    assert queues.waiting() == ["", good]
    assert queues.run("ls").stdout.splitlines()[1].split()[0] == "?"
    assert queues.run("run", good, "--yes").stdout == "run 1, skipped 0, failed 0\n"
    assert queues.run("bury", "--all", "--yes").stdout == "buried 1, skipped 0, failed 0\n"


# Changing


@redis_only
def test_run_puts_the_retry_into_its_queue_unchanged(queues):
    ids = queues.many(3)
    (urgent,) = queues.wait(message(7, properties={"priority": 6}), step=6)
    with Retries(queues.app) as waiting:
        done = list(waiting.run([ids[1][:8], urgent]))
        assert [(r.retry.task_id, str(r.result), r.to) for r in done] == [
            (ids[1], "run", "shop"),
            (urgent, "run", "shop"),
        ]
    assert queues.waiting() == [ids[0], ids[2]]
    (sent,), (first,) = queues.lying("shop"), queues.lying("shop", step=6)
    envelope = Envelope.from_wire(sent, "shop")
    assert (envelope.headers, envelope.body) == (
        {**message(1).headers, HEADER: envelope.headers[HEADER]},
        message(1).body,
    )
    assert History.loads(envelope.headers[HEADER]).count == 1
    assert first["properties"]["priority"] == 6


@redis_only
def test_bury_makes_a_letter_with_all_attempts(queues):
    @queues.app.task(
        base=ResilientTask, name="mail.send", shared=False, dead_letter_queue="dead.{queue}"
    )
    def send() -> None: ...

    ids = queues.many(2)
    (mail,) = queues.wait(message(5, queue="mail", headers={"task": "mail.send"}))
    result = queues.run("bury", ids[0], mail, "--yes")
    assert (result.exit_code, result.stdout) == (0, "buried 2, skipped 0, failed 0\n")
    assert queues.waiting() == [ids[1]]
    with DeadLetters(queues.app) as letters:
        ours, theirs = sorted(letters.list(), key=lambda filed: filed.queue, reverse=True)
        assert (ours.queue, theirs.queue) == ("dead_letter", "dead.mail")
        letter = ours.letter
        assert (str(letter.reason), letter.task_id, letter.error.error) == (
            "manual", ids[0], "shop.Timeout",
        )  # fmt: skip
        assert (letter.history.count, letter.envelope.queue) == (1, "shop")
        assert [str(r.result) for r in letters.replay(letter.id)] == ["published"]
    (sent,) = queues.lying("shop")
    assert sent["headers"]["retries"] == 0


@redis_only
def test_drop_removes_the_retry_and_tells_celery(queues):
    """As if it had been revoked: whoever asks for its result is not left to wait."""
    queues.app.conf.result_backend = queues.app.conf.broker_url
    ids = queues.many(3)
    (mail,) = queues.wait(message(5, queue="mail", headers={"task": "mail.send"}))
    dry = queues.run("drop", "--queue", "mail", "--dry-run")
    assert dry.stdout.endswith("would drop 1 for good\n")
    assert queues.run("drop", mail, "--yes").stdout == "dropped 1, skipped 0, failed 0\n"
    for arguments in (["--all", "--yes"], [*ids[:2], "--yes"]):
        result = queues.run("drop", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "pass --yes and --because" in result.stderr
    done = queues.run("drop", ids[0], ids[1], "--yes", "--because", "paid by hand", "--json")
    said = json.loads(done.stdout)
    assert [one["id"] for one in said.pop("retries")] == ids[:2]
    assert said == {"dropped": 2, "skipped": 0, "failed": 0, "because": "paid by hand"}
    assert queues.waiting() == [ids[2]]
    result = queues.app.AsyncResult(ids[0])
    assert (result.state, str(result.info)) == ("REVOKED", "paid by hand")
    assert queues.app.AsyncResult(ids[2]).state == "PENDING"
    with DeadLetters(queues.app) as letters:
        assert letters.count() == {"dead_letter": 0}
    with Retries(queues.app) as ours, Retries(queues.app) as theirs:
        dropping = ours.drop("all")
        assert [str(c.result) for c in theirs.run(ids[2])] == ["run"]
        assert [str(c.result) for c in dropping] == []
        assert queues.lying("shop")


@redis_only
def test_retry_has_the_group_of_the_letter_that_it_may_become(queues):
    waits = message(1)
    history = History.loads(waits.headers[HEADER])
    last = replace(history.attempts[0], frame="shop.http.get")
    told = {HEADER: replace(history, attempts=(last,)).dumps()}
    ids = queues.wait(message(1, headers=told), message(2))
    (one,) = json.loads(queues.run("ls", "--json", "--limit", "1").stdout)
    for group in (one["group"], one["fingerprint"][:6]):
        chosen = json.loads(queues.run("ls", "--json", "--group", group).stdout)
        assert [retry["id"] for retry in chosen] == ids[:1]
    assert queues.run("bury", "--group", one["group"], "--yes").exit_code == 0
    with DeadLetters(queues.app) as letters:
        (filed,) = letters.list(filters=Filters(group=one["group"]))
    assert (filed.letter.task_id, filed.letter.group) == (ids[0], one["group"])


@redis_only
def test_purge_does_not_reach_scheduled_retries_and_drop_does(queues):
    (waits,) = queues.many(1)
    assert queues.app.control.purge() == 0
    assert queues.waiting() == [waits]
    assert queues.run("drop", "--all", "--yes").stdout == "dropped 1, skipped 0, failed 0\n"
    with queues.app.connection_for_read() as connection:
        broker = open_broker(connection)
        assert broker.waiting.move_due("w").moved == 0


@redis_only
def test_spread_is_even(queues):
    ids = queues.many(500, left=5.0)
    before = queues.now()
    with Retries(queues.app) as waiting:
        done = list(waiting.reschedule("all", spread=600.0, random=Random(1)))
        assert [str(r.result) for r in done] == ["rescheduled"] * 500
        assert {r.retry.task_id for r in done} == set(ids)
        dues = sorted(retry.due - before for retry in waiting.list())
    assert len(dues) == 500
    assert dues[0] >= 0
    assert dues[-1] <= 605
    for part in range(5):
        assert 60 <= sum(part * 120 <= due < (part + 1) * 120 for due in dues) <= 140
    earliest = queues.redis.zscore("celery_resilience:waiting", "shop")
    assert earliest - before == pytest.approx(dues[0], abs=0.001)


@redis_only
def test_reschedule_moves_a_retry_later_and_earlier(queues):
    ids = queues.many(2)
    with Retries(queues.app) as waiting:
        list(waiting.reschedule(ids[0], delay=3600.0))
        list(waiting.reschedule(ids[1], delay=30.0))
        left = {retry.task_id: retry.left for retry in waiting.list()}
        with pytest.raises(ValueError, match="delay and spread must be >= 0, got "):
            waiting.reschedule("all", delay=-1.0)
    assert left[ids[0]] == pytest.approx(3600, abs=5)
    assert left[ids[1]] == pytest.approx(30, abs=5)


@redis_only
@pytest.mark.parametrize("protocol", [1, 2])
def test_release_gives_the_rest_of_the_delay_as_eta(queues, protocol):
    one = message(1)
    if protocol == 1:
        body = {"task": "shop.charge", "id": one.headers["id"], "retries": 1, "args": [1]}
        headers = {HEADER: one.headers[HEADER]}
        one = replace(one, headers=headers, body=json.dumps(body).encode())
    queues.wait(replace(one, headers={**one.headers, "id": "1"}), left=600.0)
    queues.wait(message(2), left=-5.0)
    with Retries(queues.app) as waiting:
        dues = {retry.task_id: retry.due for retry in waiting.list()}
    assert queues.run("release", "--all", "--yes").stdout == "released 2, skipped 0, failed 0\n"
    due, later = [Envelope.from_wire(raw, "shop") for raw in queues.lying("shop")]
    assert due.fields()["eta"] is None
    assert seconds_until(later.fields()["eta"], now=max(dues.values())) == pytest.approx(
        0, abs=0.01
    )
    assert queues.waiting() == []


@redis_only
def test_release_does_not_open_a_pickle(queues):
    received = message(1, headers={"id": "1"})
    received = replace(
        received, headers={HEADER: received.headers[HEADER]}, body=b"garbage",
        content_type="application/x-python-serialize",
    )  # fmt: skip
    queues.wait(replace(received, headers={**received.headers, "id": "1"}))
    result = queues.run("release", "--all", "--yes")
    assert (result.exit_code, result.stdout) == (1, "released 0, skipped 0, failed 1\n")
    assert "accept_content does not let us open its body" in result.stderr
    assert len(queues.waiting()) == 1


@redis_only
def test_retries_are_moved_once_by_two_operators(queues):
    ids = queues.many(450)
    with Retries(queues.app) as ours, Retries(queues.app) as theirs:
        one, two = ours.run("all"), theirs.run("all")
        done = []
        for changes in (one, two, one, two, one):
            done += [c for _, c in zip(range(130), changes)]  # noqa: B905
        done += [*one, *two]
    moved = [c.retry.task_id for c in done if str(c.result) == "run"]
    assert sorted(moved) == sorted(ids)
    assert {(str(c.result), c.why) for c in done} == {
        ("run", ""),
        ("skipped", "no longer scheduled"),
    }
    assert len(queues.lying("shop")) == 450


@redis_only
def test_retries_are_moved_once_by_an_operator_and_a_worker(queues, broker):
    """All are due: each is moved by the worker, run by one operator or buried by the other."""
    ids = queues.many(600, left=-700.0)

    def operate(verb: str) -> list[str]:
        with closing(Queues(broker)) as mine, Retries(mine.app) as waiting:
            done = getattr(waiting, verb)("all")
            return [c.retry.task_id for c in done if str(c.result) != "skipped"]

    def work() -> int:
        with queues.app.connection_for_read() as connection:
            moving = open_broker(connection)
            looks = iter(lambda: moving.waiting.move_due("w").moved, 0)
            return sum(looks)

    with ThreadPoolExecutor(3) as threads:
        run, buried = threads.submit(operate, "run"), threads.submit(operate, "bury")
        moved = threads.submit(work)
        assert len(run.result()) + len(buried.result()) + moved.result() == 600
    with DeadLetters(queues.app) as letters:
        lost = [filed.letter.task_id for filed in letters.list()]
    assert sorted(lost) == sorted(buried.result())
    assert sorted(lost + [m["headers"]["id"] for m in queues.lying("shop")]) == sorted(ids)


@redis_only
def test_retry_that_fails_again_meanwhile_is_left(queues):
    """As when the cause has not been mended: it takes nobody's place, and the run ends."""
    ids = queues.many(120)
    with Retries(queues.app) as waiting:
        done = []
        for changed in waiting.run("all"):
            done.append(changed.retry.task_id)
            again = message(1000 + len(done))
            history = History.loads(again.headers[HEADER])
            late = replace(history.attempts[0], at=time.time() + 1, delay=700.0)
            headers = {**again.headers, HEADER: replace(history, attempts=(late,)).dumps()}
            # Before some of the others, on a page that is still to be read.
            queues.wait(replace(again, headers=headers), left=710.0)
    assert done == ids
    assert len(queues.waiting()) == 120


@redis_only
def test_filters_choose(queues):
    queues.many(30)
    queues.wait(message(50, headers={"task": "mail.send"}), message(51, queue="mail"))
    with Retries(queues.app) as waiting:
        assert len(list(waiting.list(filters=Filters(task="mail.*")))) == 1
        assert len(list(waiting.list(filters=Filters(args=(("n", "7"),))))) == 1
        assert len(list(waiting.list(filters=Filters(error="Timeout", queue="shop")))) == 31
        assert list(waiting.list(filters=Filters(since=time.time()))) == []
        done = waiting.run("all", filters=Filters(task="shop.*", queue="shop"), limit=3)
        assert len(list(done)) == 3


@redis_only
def test_release_requeues_messages_held_by_dead_workers(queues):
    """Nobody of ours is left to do it after a rollback; the living are left alone."""
    payload = dumps(message(1).to_wire(str(uuid.uuid4()), "shop"))
    workers = {"dead": queues.now() - 1, "alive": queues.now() + 60}
    queues.redis.zadd("celery_resilience:workers", workers)
    for worker in workers:
        queues.redis.hset(f"celery_resilience:held:{worker}", "tag", f"shop\n{payload}")
    queues.many(1)
    with Retries(queues.app) as waiting:
        # Soon after the server's start every lease has run out.
        eventually(lambda: waiting.orphans() == {"dead": 1}, timeout=30)
    assert (
        "would release 1, and requeue 1 held by"
        in queues.run("release", "--all", "--dry-run").stdout
    )
    # A filter chooses retries: what dead workers hold is none of them.
    assert queues.run("release", "--queue", "mail", "--dry-run").stdout.endswith(
        "would release 0\n"
    )
    result = queues.run("release", "--all", "--yes")
    assert result.stdout == "released 1, skipped 0, failed 0, given back 1\n"
    (given,) = [m for m in queues.lying("shop") if m["headers"].get("redelivered")]
    assert given["headers"]["id"] == message(1).headers["id"]
    assert queues.redis.zrange("celery_resilience:workers", 0, -1) == ["alive"]
    assert queues.redis.hlen("celery_resilience:held:alive") == 1
    assert json.loads(queues.run("release", "--all", "--yes", "--json").stdout) == {
        "retries": [], "released": 0, "skipped": 0, "failed": 0,
    }  # fmt: skip


# Real workers


@redis_only
def test_run_runs_a_retry_now_and_once(broker, client, start_worker):
    start_worker("tests.apps.shop", broker, env=client.env)
    sent = client.send("parks", "parks")
    eventually(lambda: waiting_in(client) == {"shop": 1})
    with Retries(client.app) as waiting:
        assert [str(c.result) for c in waiting.run(sent.id)] == ["run"]
        eventually(lambda: client.letters(), message="its second attempt has failed")
        assert waiting.count()["shop"] == 0
    (letter,) = client.letters()
    assert (letter.task_id, str(letter.reason), letter.history.count) == (sent.id, "exhausted", 2)
    assert client.executions()["parks"] == 2


@redis_only
def test_bury_tells_celery(broker, client, start_worker):
    """Its state is FAILURE, with the error of the last attempt; its error callback is called."""
    start_worker("tests.apps.shop", broker, env=client.env)
    told = client.app.signature("tests.apps.shop.plain", queue="shop")
    sent = client.send("parks", "parks", link_error=told)
    eventually(lambda: waiting_in(client) == {"shop": 1})
    eventually(lambda: client.state(sent) == "RETRY")
    with Retries(client.app) as waiting:
        assert [str(c.result) for c in waiting.bury("all")] == ["buried"]
    assert client.state(sent) == "FAILURE"
    error = client.app.backend.get_task_meta(sent.id)["result"]
    assert (type(error).__name__, str(error)) == ("TransientError", "parks")
    eventually(lambda: client.executions()["plain"] == 1)
    assert sent.id in client.lines()[-1]
    assert [str(letter.reason) for letter in client.letters()] == ["manual"]


@redis_only
def test_bury_works_without_the_result_backend(queues, caplog):
    class Down:
        tried = 0

        def mark_as_failure(self, *args: Any, **kwargs: Any) -> None:
            self.tried += 1
            raise ConnectionError("away")

    queues.app._local.backend = down = Down()
    queues.many(5)
    assert queues.run("bury", "--all", "--yes").stdout == "buried 5, skipped 0, failed 0\n"
    assert down.tried == 3
    assert "not trying to store that of the others" in caplog.text


@redis_only
def test_release_lets_a_stock_worker_run_a_retry_when_due(broker, client, start_worker):
    """The rollback: the retry waits in the worker, and its attempt is counted."""
    ours = start_worker("tests.apps.shop", broker, env=client.env)
    sent = client.send("asks", "asks", 6.0)
    eventually(lambda: waiting_in(client) == {"shop": 1})
    ours.terminate()
    with Retries(client.app) as waiting:
        (retry,) = waiting.list()
        assert [str(c.result) for c in waiting.release("all")] == ["released"]
    start_worker("tests.apps.stock", broker, env=client.env)
    eventually(lambda: client.executions()["stock-asks"] == 1, timeout=30)
    _, retries_before, at = client.lines()[-1].split()
    assert (retry.task_id, retries_before) == (sent.id, "1")
    assert float(at) >= retry.due - 0.01
    assert client.executions() == {"asks": 1, "stock-asks": 1}


def waiting_in(client: Client) -> dict[str, int]:
    with Retries(client.app) as waiting:
        return {queue: number for queue, number in waiting.count().items() if number}


# The command line


@redis_only
@pytest.mark.usefixtures("terminal")
def test_ls_fits_the_screen(queues, monkeypatch):
    queues.many(3)
    queues.wait(message(9, headers={"task": "shop.orders.payments.settle_everything_at_once"}))
    queues.wait(message(10), left=-90.0)
    result = queues.run("ls")
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["ID", "DUE", "IN", "QUEUE", "TASK", "ATTEMPTS", "ERROR"]
    assert all(len(line) <= 80 for line in [heading, *lines])
    assert lines[0].split()[:5] == ["0000000a", "-1m", "shop", "shop.charge", "1"]
    assert lines[1].split()[:2] == ["00000000", "9m"]
    assert "Timeout: too slow: tok" in lines[0]
    assert "…" in lines[-1]
    monkeypatch.setenv("COLUMNS", "100")
    assert "Timeout: too slow: token=***" in queues.run("ls").stdout.splitlines()[1]


@redis_only
def test_ids_that_begin_alike_are_shown_longer(queues):
    queues.wait(*(message(n, headers={"id": f"nightly-import-{n}"}) for n in range(3)))
    shown = [line.split()[0] for line in queues.run("ls").stdout.splitlines()[1:]]
    assert shown == [f"nightly-import-{n}" for n in range(3)]


@redis_only
@pytest.mark.usefixtures("terminal")
def test_ls_says_when_there_is_more_and_when_there_is_nothing(queues):
    assert queues.run("ls").stdout == "No scheduled retries.\n"
    assert queues.run("ls", "--task", "x").stdout == "No such scheduled retries.\n"
    queues.many(25)
    result = queues.run("ls")
    assert len(result.stdout.splitlines()) == 21
    for filters in ([], ["--task", "shop.*"]):
        told = queues.run("ls", *filters).stderr
        assert told == "20 of 25 scheduled retries: --limit N or --limit all shows more.\n"
    assert len(queues.run("ls", "--limit", "all").stdout.splitlines()) == 26


@redis_only
def test_json_is_all_that_stdout_gets(queues):
    ids = queues.many(3)
    listed = json.loads(queues.run("ls", "--json", "--limit", "2").stdout)
    assert [one["id"] for one in listed] == ids[:2]
    assert listed[0]["message"] == "too slow: token=*** 0"
    assert 590 < listed[0]["due_in"] <= 600
    shown = json.loads(queues.run("show", ids[2][:9], "--json").stdout)
    assert shown["arguments"] == "args=(2, {'token': ***}) kwargs={}"
    assert [attempt["number"] for attempt in shown["history"]] == [1]
    assert json.loads(queues.run("count", "--json").stdout) == {"mail": 0, "shop": 3}
    assert json.loads(queues.run("count", "--queue", "x", "--json").stdout) == {"x": 0}
    dry = json.loads(queues.run("run", "--all", "--dry-run", "--json").stdout)
    assert [one["id"] for one in dry] == ids
    done = json.loads(queues.run("run", "--all", "--yes", "--json").stdout)
    assert [(one["result"], one["to"]) for one in done.pop("retries")] == [("run", "shop")] * 3
    assert done == {"run": 3, "skipped": 0, "failed": 0}
    assert json.loads(queues.run("ls", "--json").stdout) == []


@redis_only
def test_show_prints_all_about_a_retry(queues, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (one,) = queues.many(1)
    result = queues.run("show", one)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for told in (
        f"Scheduled retry of {one}", "shop.charge", "(in 10 min", "transient, by network.timeout",
        "1, the first 1 min", "again in 11 min", "args=(0, {'token': ***})", "tenant: acme",
        f"retries run {one}",
    ):  # fmt: skip
        assert told in result.stdout, f"{told} is not in\n{result.stdout}"
    assert "s3cr3t" not in result.stdout


@redis_only
def test_changes_need_ids_filters_or_all_and_a_confirmation(queues):
    ids = queues.many(2)
    for verb in ("run", "bury", "release"):
        assert queues.run(verb).exit_code == 2
        assert queues.run(verb, ids[0], "--all").exit_code == 2
        assert queues.run(verb, ids[0], "--task", "x").exit_code == 2
        assert queues.run(verb, ids[0], "--limit", "1").exit_code == 2
        asked = queues.run(verb, "--all")
        assert (asked.exit_code, asked.stdout) == (1, "")
        assert (
            f"2 scheduled retries to {verb}: not a terminal, cannot prompt: pass --yes"
            in asked.stderr
        )
        # Whoever looks first may have --yes on the line already.
        dry = queues.run(verb, "--task", "shop.*", "--dry-run", "--yes")
        assert dry.exit_code == 0
        assert dry.stdout.endswith(f"would {verb} 2\n" if verb != "run" else "would run 2 now\n")
    assert queues.run("reschedule", "--all", "--yes").exit_code == 2
    assert queues.run("reschedule", "--all", "--spread", "soon", "--yes").exit_code == 2
    dry = queues.run("reschedule", "--all", "--in", "5m", "--spread", "10m", "--dry-run").stdout
    assert dry.endswith("would reschedule 2 in 5 min spread over 10 min\n")
    assert queues.run("show", "nothing").exit_code == 1
    assert queues.waiting() == ids


def test_broker_that_is_away_is_exit_code_69():
    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    context = CLIContext(app=app, no_color=True, workdir=None)
    for verb in ("ls", "count"):
        result = CliRunner().invoke(retries, [verb], obj=context)
        assert (result.exit_code, result.stdout) == (69, "")
    app.close()


# Brokers that can't tell


@rabbitmq_only
def test_rabbitmq_tells_the_numbers_that_it_knows(broker, monkeypatch):
    app = Celery("shop", broker=broker.broker_url, set_as_current=False)
    levels = [(1.0, 3), (512.0, 12_000)]
    monkeypatch.setattr(AmqpBroker, "waiting_levels", lambda self: levels, raising=False)
    context = CLIContext(app=app, no_color=True, workdir=None)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(retries, arguments, obj=context)

    for verb in ("ls", "count"):
        result = run(verb)
        assert result.exit_code == 0
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["HELD", "FOR", "MESSAGES"], ["1", "s", "3"], ["8", "min", "32", "s", "12,000"],
        ]  # fmt: skip
        assert result.stderr.startswith("RabbitMQ delays each message on its own: retries cannot")
        told = json.loads(run(verb, "--json").stdout)
        assert (told["listed"], told["levels"][1]) == (False, {"seconds": 512, "messages": 12000})
    for verb in ("run", "bury", "release"):
        result = run(verb, "--all", "--yes")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "retries cannot be listed or moved" in result.stderr
    assert run("show", "abcd").exit_code == 1
    app.close()


def test_retries_on_other_brokers_are_kept_in_a_worker(tmp_path):
    app = Celery("shop", broker="filesystem://", set_as_current=False)
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path))
    app.conf.broker_transport_options = folders
    with Retries(app) as waiting:
        assert waiting.levels() == []
        with pytest.raises(NotListed, match="a retry waits in a worker's memory"):
            waiting.count()
    app.close()
