"""Error trackers hear once of what is lost, and nothing of what goes on: Sentry and New Relic."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.conftest import Scene, need
from tests.servers import eventually
from tests.worker import Worker

need("sentry_sdk", "newrelic", required=True)

APP = "tests.ecosystem.apps.watched"
#: What goes on, or is over without a letter, and so is no error.
QUIET = [("fine", 1), ("flaky", 2), ("by_policy", 1), ("asks", 1), ("wrapped", 1), ("discarded",)]
#: What its owner throws; New Relic does not know that word.
EXPECTED = [("expected",)]
#: What leaves a letter, by the one error that is told.
TOLD: dict[str, tuple[Any, ...]] = {
    "ConnectionError": ("flaky", 9),
    "TransientError": ("by_policy", 9),
    "LookupError": ("asks", 9),
    "ValueError": ("dead",),
    "BodyExited": ("exits",),
}


class Watched:
    """A worker that is watched by *tracker*, and what that was told."""

    def __init__(self, scene: Scene, start_worker: Any, path: Path, pool: str, tracker: str):
        self._scene, self._path = scene, path
        env = {**scene.env, "EVENTS": str(path), "TRACKER": tracker, "POOL": pool}
        self._worker: Worker = start_worker(APP, scene.broker, pool=pool, env=env)

    def play(self, *tasks: tuple[Any, ...]) -> None:
        for name, *args in tasks:
            self._scene.send(f"eco.{name}", *args)

    def told(self, letters: int) -> list[dict[str, Any]]:
        """Every event, when there are so many letters and all else is over."""
        eventually(lambda: len(self._scene.letters()) == letters, 60, message=f"{letters} letters")
        assert self._worker.terminate() == 0
        return [json.loads(line) for line in self._path.read_text().splitlines()]


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_sentry_has_one_event_for_each_letter(
    scene: Scene, start_worker: Callable[..., Worker], tmp_path: Path, pool: str
) -> None:
    """With its default integrations; of what the main process decides our line is the event."""
    watched = Watched(scene, start_worker, tmp_path / "events", pool, "sentry")
    here = {"None": "rejects"}
    if pool == "prefork":
        here |= {"WorkerLostError": "killed", "TimeLimitExceeded": "slow"}
    watched.play(*QUIET, *EXPECTED, *TOLD.values(), *((name,) for name in here.values()))
    with scene.app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(b"{", routing_key="eco", exchange="", content_type="application/json")
    events = watched.told(len(TOLD) + len(here) + 1)
    # billiard says itself that a process has died.
    found = Counter(str(e["error"]) for e in events if e["logger"] != "multiprocessing")
    assert found == Counter([*TOLD, *here, "DecodeError"])


@pytest.mark.parametrize("pool", ["prefork"])
def test_new_relic_has_an_error_in_the_transaction_of_each_letter_alone(
    scene: Scene, start_worker: Callable[..., Worker], tmp_path: Path, pool: str
) -> None:
    watched = Watched(scene, start_worker, tmp_path / "events", pool, "new-relic")
    watched.play(*QUIET, *TOLD.values())
    transactions = watched.told(len(TOLD))
    runs = 1 + 3 + 2 + 2 + 2 + 1 + 4 + 3 + 3 + 1 + 1
    assert len(transactions) == runs
    errors = [error.rpartition(":")[2] for each in transactions for error in each["errors"]]
    assert Counter(errors) == Counter(list(TOLD))
