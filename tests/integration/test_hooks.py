"""A hook that asks for a retry is heard, and the message has one owner."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

WAYS = [
    "on_failure_publishes",
    "on_failure_raises",
    "on_failure_swallows",
    "on_failure_raises_its_own",
    "on_failure_puts_back",
    "after_return_publishes",
    "after_return_raises",
    "on_retry_publishes",
    "on_retry_raises",
]


@pytest.mark.parametrize(
    ("broker", "pool"),
    [("redis", "prefork"), ("redis", "threads")],
    indirect=["broker"],
)
def test_hooks_request_takes_the_place_of_what_was_decided(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Each is run twice, and is no letter; past its limit it is one letter, and no more runs."""
    worker = start_worker("tests.apps.hooks", broker, pool=pool, env=client.env)
    done = {way: client.app.send_task(f"hooks.{way}", (way,)) for way in WAYS}
    used_up = [f"{way}_used_up" for way in ("on_failure_publishes", "on_failure_raises")]
    for name in used_up:
        client.app.send_task(f"hooks.{name.removesuffix('_used_up')}", (name, 9))
    for result in done.values():
        assert client.value(result) == "done"
    eventually(lambda: client.count("dead_letter") == 2)
    assert worker.terminate() == 0
    assert client.count("shop") == 0
    runs = {**dict.fromkeys(WAYS, 2), **dict.fromkeys(used_up, 3)}
    assert client.executions() == runs
    assert sorted(letter.task for letter in client.letters()) == [
        "hooks.on_failure_publishes",
        "hooks.on_failure_raises",
    ]
    log = worker.log()
    assert "could not be announced" not in log
    assert "LOST" not in log
