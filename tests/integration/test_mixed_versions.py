"""Workers of 0.1.0 and of today on the same queues: either finishes what the other has left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue

from celery_resilience import Retries, __version__
from tests.client import Client
from tests.faults.fleet import play
from tests.older import APP, COMMITS, NoHistory, unpacked
from tests.servers import eventually
from tests.worker import ROOT, Broker, Worker

OLD = "0.1.0"
LEASE = {"LEASE": "3"}

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.parametrize("broker", ["redis", "rabbitmq-quorum"], indirect=True),
]

StartWorker = Callable[..., Worker]
Trees = Mapping[str, Path]


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    """The tree of 0.1.0 and that of today."""
    try:
        old = unpacked(COMMITS[OLD], tmp_path_factory.mktemp(OLD))
    except NoHistory as exc:
        pytest.skip(str(exc))
    return {"old": old, "new": ROOT}


class Operator:
    """The commands of one version."""

    def __init__(self, tree: Path, broker: Broker, record: Path) -> None:
        self._tree = tree
        self._environment = {
            **os.environ, "PYTHONPATH": str(tree), "BROKER_URL": broker.broker_url,
            "BACKEND_URL": broker.backend_url, "QUEUE_TYPE": broker.queue_type,
            "RECORD": str(record),
        }  # fmt: skip

    def dlq(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", APP, "dlq", *arguments],
            cwd=self._tree, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def letters(self) -> dict[str, Any]:
        """The letters by the ids of their tasks."""
        return {letter["task_id"]: letter for letter in json.loads(self.dlq("ls", "--json"))}


def scheduled(client: Client) -> int:
    """How many retries wait in the broker."""
    with Retries(client.app) as retries:
        if "redis" in str(client.app.conf.broker_url):
            return len(list(retries.list()))
        return sum(number for _, number in retries.levels())


@pytest.mark.parametrize(("killed", "other"), [("old", "new"), ("new", "old")])
def test_either_version_finishes_what_a_killed_worker_of_the_other_has_left(
    killed: str, other: str, trees: Trees, broker: Broker, client: Client,
    start_worker: StartWorker, tmp_path: Path,
) -> None:  # fmt: skip
    """What ran, a scheduled retry and a dead letter; and the letter of the other is replayed."""
    versions = {"old": OLD, "new": __version__}
    gate, env = tmp_path / "gate", {**client.env, **LEASE}

    def send(task: str, name: str, *arguments: str) -> None:
        client.app.send_task(f"{APP}.{task}", (name, *arguments), task_id=name, queue="work")

    def record() -> list[str]:
        return [" ".join(line.split()[:2]) for line in client.lines()]

    kind = {"x-queue-type": broker.queue_type}
    client.app.amqp.queues.add(Queue("work", queue_arguments=kind))
    first = start_worker(APP, broker, cwd=trees[killed], env=env)
    send("fails_until", "letter", str(gate))
    send("hopeless", "hopeless")
    eventually(lambda: len(client.letters()) == 2, message="two letters")
    send("holds", "held", str(gate))
    eventually(lambda: "start held" in record(), message="it runs")
    send("later", "later")
    eventually(lambda: scheduled(client) == 1, message="a retry is scheduled")
    first.kill()

    # The commands of the other version look at the letters while no worker is there.
    operator = Operator(trees[other], broker, client.record)
    found = operator.letters()
    assert {name: letter["reason"] for name, letter in found.items()} == {
        "letter": "permanent", "hopeless": "exhausted",
    }  # fmt: skip
    assert "ValueError" in operator.dlq("show", found["letter"]["id"])

    gate.touch()
    start_worker(APP, broker, cwd=trees[other], env=env)
    eventually(lambda: "end held" in record(), 60, message="what was left runs")
    eventually(lambda: "end later" in record(), 60, message="the scheduled retry runs")
    operator.dlq("replay", "--all", "--yes")
    eventually(lambda: "end letter" in record(), message="the replayed letter succeeds")
    eventually(lambda: record().count("start hopeless") == 6, message="the other has its retries")
    eventually(lambda: [letter.task_id for letter in client.letters()] == ["hopeless"])
    counted = Counter(record())
    assert counted.pop("start later") >= 3  # the first may be killed in its second attempt
    assert counted == {
        "start letter": 2, "end letter": 1, "start hopeless": 6, "start held": 2, "end held": 1,
        "end later": 1,
    }  # fmt: skip
    (seen,) = [line.split()[3].split(",") for line in client.lines() if "end later" in line]
    assert (len(seen), seen[0], seen[-1]) == (3, versions[killed], versions[other])
    ran = [line.split()[2] for line in client.lines() if line.startswith("end ")]
    assert set(ran) == {versions[other]}


def test_both_versions_share_a_queue_under_load_and_lose_nothing(
    trees: Trees, broker: Broker, tmp_path: Path
) -> None:
    """A worker of each, and each is killed once; ``make fleet`` does it for a minute."""
    assert play(broker, trees, "prefork", tmp_path, seconds=6, workers=1, env=LEASE) == []
