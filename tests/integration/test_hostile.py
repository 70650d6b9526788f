"""What a task raises or returns may hurt whoever looks at it; the worker goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

APP = "tests.apps.hostile"
NAMES = [
    *("getattribute", "getattr", "class", "traceback", "cause", "dict", "args", "str", "repr"),
    *("reduce", "status", "retry_after", "notes", "exc"),
]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_exception_that_must_not_be_looked_at_is_a_letter(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Its attributes raise SystemExit or a BaseException of their own, as a policy and hooks do."""
    worker = start_worker(APP, broker, pool=pool, env=client.env)
    for name in NAMES:
        client.app.send_task("hostile.raises", (name,))
        client.app.send_task("hostile.retried", (name,))
    client.app.send_task("hostile.policy", ("policy",))
    client.app.send_task("hostile.hooks", ("hooks",))
    letters = 2 * len(NAMES) + 2
    eventually(lambda: client.count("dead_letter") == letters, 30, message=f"{letters} letters")
    # The classes of those whose class is readable still have their rule.
    runs = client.executions()
    assert {name: runs[name] for name in NAMES} == dict.fromkeys(NAMES, 1)
    assert (runs["policy"], runs["hooks"]) == (2, 2)
    assert {runs[f"retried_{name}"] for name in NAMES} <= {1, 2}
    assert runs["retried_status"] == runs["retried_str"] == 2
    fine = client.app.send_task("hostile.unwritable", ("still here",))
    eventually(lambda: client.state(fine) == "FAILURE")
    assert worker.terminate() == 0
    assert client.count("shop") == 0
    assert Counter(letter.reason.value for letter in client.letters()).keys() <= {
        "permanent",
        "exhausted",
    }


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_failure_that_the_child_cannot_store_is_stored_by_the_main_process(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Else whoever waits for the result waits for ever."""
    start_worker(APP, broker, env=client.env)
    result = client.app.send_task("hostile.unheard", ("unheard",))
    eventually(lambda: client.state(result) == "FAILURE")
    assert repr(client.app.backend.get_task_meta(result.id)["result"]) == "ValueError('unheard')"
    eventually(lambda: client.count("dead_letter") == 1)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_result_that_cannot_be_written_is_told_with_the_way_out(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """The work is done: it is neither run again nor a letter, but somebody has to look."""
    worker = start_worker(APP, broker, env=client.env)
    result = client.app.send_task("hostile.unwritable", ("set",))
    eventually(lambda: client.state(result) == "FAILURE")
    said = f"hostile.unwritable[{result.id}]: its body has succeeded and is not run again"
    (line,) = (line for line in worker.log().splitlines() if said in line)
    assert "WARNING" in line
    assert "of type set, can't be written as json" in line
    assert "ignore_result=True" in line
    told = client.inspect("stats", worker.name)
    assert told[worker.name]["resilience"] == {
        "enabled": True, "redis_transport": "own", "why": "",
        "retried": 0, "dead_letters": 0, "dropped": 0, "results_not_stored": 1,
    }  # fmt: skip
    assert worker.terminate() == 0
    assert client.count("dead_letter") == client.count("shop") == 0
    assert client.executions() == {"set": 1}
