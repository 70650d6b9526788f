"""A broker of which nothing is known but that messages go in and come out: kombu's filesystem."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue

from celery_resilience.brokers.connect import open_broker
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from tests import filesystem
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker


def test_retries_and_dead_letters_on_a_plain_transport(
    redis_broker: Broker,
    tmp_path: Path,
    start_worker: Callable[..., Worker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Publish, then acknowledge: retries come back, what gives up is a letter with its story."""
    monkeypatch.setattr(filesystem.Channel, "_put", filesystem.Channel._put)  # and back
    filesystem.write_whole_files()
    folders = {}
    for name in ("data_folder_in", "data_folder_out", "control_folder"):
        (tmp_path / name.removesuffix("_in").removesuffix("_out")).mkdir(exist_ok=True)
        folders[name] = str(tmp_path / name.removesuffix("_in").removesuffix("_out"))
    broker = replace(redis_broker, name="filesystem", broker_url="filesystem://")
    client = Client(broker, tmp_path / "record")
    client.app.conf.broker_transport_options = folders
    env = {**client.env, "BROKER_OPTIONS": json.dumps(folders)}
    start_worker("tests.apps.shop", broker, env=env, arguments=["--without-heartbeat"])
    flaky = client.send("flaky", "flaky", 1)
    client.send("refused", "refused")
    client.send("nobody_knows", "x")
    assert client.value(flaky) == "flaky done"
    eventually(lambda: client.count("dead_letter") == 2, timeout=40)
    letters = {letter.task.rpartition(".")[2]: letter for letter in taken_out(client)}
    assert {task: letter.reason.value for task, letter in letters.items()} == {
        "refused": "permanent",
        "nobody_knows": "unregistered",
    }
    assert client.executions() == {"flaky": 2, "refused": 1}
    client.close()


def taken_out(client: Client) -> list[DeadLetter]:
    """The letters; looking without taking is more than this broker can do."""
    found = []
    with client.app.connection_for_read() as connection:
        queue: Any = Queue("dead_letter").bind(connection.channel())
        while (message := queue.get()) is not None:
            message.ack()
            found.append(DeadLetter.from_envelope(Envelope.received(message, "dead_letter")))
        open_broker(connection).close()
    return found
