"""What an earlier release has left in a broker: workers and commands of today go on with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_resilience.cli.dlq import dlq
from celery_resilience.operate.dead_letters import DeadLetters
from celery_resilience.operate.retries import Retries
from tests.fixtures import RELEASES, dumps, recorded
from tests.fixtures.record import APP, BROKERS
from tests.servers import eventually
from tests.worker import Broker, Worker

QUEUES = ("dead_letter", "dead.work")
#: Messages that no worker can run: they end as letters again.
NO_TASKS = {"undecodable", "invalid"}


class Heir:
    """An app of today on the broker of an earlier release."""

    def __init__(self, broker: Broker, record: Path) -> None:
        self.broker, self.record = broker, record
        self.app = Celery("heir", broker=broker.broker_url, set_as_current=False)
        self.app.conf.accept_content = ["json", "pickle"]

    def load(self, phase: Any) -> None:
        if self.broker.name.startswith("rabbitmq"):
            dumps.load_rabbitmq(self.broker.broker_url, phase["broker"])
        else:
            dumps.load_redis(self.broker.redis_url, phase["broker"])

    def letters(self) -> list[Any]:
        found = []
        for queue in QUEUES:
            with DeadLetters(self.app, dead_letter_queue=queue) as letters:
                found += [filed.letter for filed in letters.list()]
        return found

    def replay(self) -> None:
        for queue in QUEUES:
            with DeadLetters(self.app, dead_letter_queue=queue) as letters:
                for replayed in letters.replay("all"):
                    assert replayed.result.value == "published", replayed.why

    def run(self, *arguments: str) -> str:
        context = CLIContext(app=self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(dlq, arguments, obj=context)
        assert done.exit_code == 0, done.output
        return done.stdout

    def close(self) -> None:
        self.app.close()

    def ran(self) -> Counter[str]:
        """How often each body was run to its end."""
        return Counter(name for name, _ in self.lines())

    def lines(self) -> list[Any]:
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def heir(broker: Broker, tmp_path: Path) -> Iterator[Heir]:
    with closing(Heir(broker, tmp_path / "record")) as made:
        yield made


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("broker", BROKERS, indirect=True)
def test_messages_that_a_release_has_left_go_on(
    release: str, broker: Broker, heir: Heir, start_worker: Callable[..., Worker]
) -> None:
    """Letters are read and replayed, waiting retries run, and what was held runs: each once."""
    left, on_redis = recorded(release, broker.name), "redis" in broker.name
    said = {letter["id"]: letter for letter in left["dead"]["said"]}
    # First, for one of its messages finds its queue gone, which a later phase has.
    heir.load(left["dead"])

    letters = heir.letters()
    assert Counter(letter.reason for letter in letters) == Counter(
        letter["reason"] for letter in said.values()
    )
    known = [letter for letter in letters if letter.reason != "unroutable"]
    assert {letter.id for letter in known} <= set(said)
    for queue in QUEUES:
        listed = json.loads(heir.run("ls", "--dead-letter-queue", queue, "--json"))
        assert {each["id"] for each in listed} <= {letter.id for letter in letters}
    for letter in known[::3]:
        queue = "dead.work" if letter.task == "recorded.own" else "dead_letter"
        shown = heir.run("show", "--dead-letter-queue", queue, letter.id)
        assert letter.task in shown
        assert letter.error.error.rpartition(".")[2] in shown

    for phase in ("sent", "waiting", "held"):
        heir.load(left[phase])
    parked = {"parked", "parked-one", "parked-pickle", "parked-gzip", "parked-urgent", "asked"}
    expected = {"json", "one", "pickle", "gzip", "urgent", "soon", "held-0", "held-1", "received"}
    env = {"RECORD": str(heir.record), "LEASE": "3"}
    worker = start_worker(APP, broker, env=env)
    expected |= parked if on_redis else set()
    eventually(lambda: set(heir.ran()) >= expected, 40, message="all has run")
    if not on_redis:  # they are on their way through the levels
        with Retries(heir.app) as retries:
            eventually(lambda: sum(n for _, n in retries.levels()) == len(parked))

    heir.replay()
    expected |= {
        letter["arguments"].split("'")[1] if "'" in letter["arguments"] else letter["reason"]
        for letter in said.values()
    }
    expected -= NO_TASKS | {"chain"}  # whose body had succeeded
    # Protocol 1 shows no arguments.
    expected |= {"chain, rest", "permanent-one"}
    eventually(lambda: set(heir.ran()) >= expected, 40, message="the replays have run")
    eventually(lambda: {letter.reason for letter in heir.letters()} == NO_TASKS)
    assert worker.terminate() == 0
    assert heir.ran() == Counter(expected)
    kept = dict(heir.lines())
    assert kept["exhausted"] == {"tried": 12}
    if on_redis:
        assert kept["parked"] == {"seen": ["parked", 1]}
