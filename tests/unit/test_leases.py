"""What could not be let go while the connection was gone is let go later, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis

from celery_resilience.brokers.redis.leases import LeaseOwner, Leases, plain_client


class Client(fakeredis.FakeRedis):
    """Lets something else happen while a command is under way."""

    meanwhile: Callable[[], None] | None = None

    def hdel(self, *args: Any) -> Any:
        answer = super().hdel(*args)
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return answer


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def owner(client: Client) -> LeaseOwner:
    owner = LeaseOwner()
    client.hset(owner.key, mapping={"done": "1", "late": "2", "runs": "3"})
    owner.unsent.append("done")
    return owner


def test_message_done_is_acked(client: Client, owner: LeaseOwner) -> None:
    Leases(client, "").ack_unsent(owner)
    assert set(client.hkeys(owner.key)) == {b"late", b"runs"}
    assert owner.unsent == []


def test_message_done_while_another_thread_acks_is_not_forgotten(
    client: Client, owner: LeaseOwner
) -> None:
    """The next connection and the housekeeper do it at the same moment, and a task ends then."""
    leases = Leases(client, "")

    def meanwhile() -> None:
        leases.ack_unsent(owner)
        owner.unsent.append("late")

    client.meanwhile = meanwhile
    leases.ack_unsent(owner)
    assert owner.unsent == ["late"]
    leases.ack_unsent(owner)
    assert set(client.hkeys(owner.key)) == {b"runs"}


def test_commands_on_a_single_connection_wait_for_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Older clients do not see to it, and greenlets read each other's answers."""
    running: list[int] = []
    most: list[int] = []

    class Older:
        def __init__(self, **options: Any) -> None:
            pass

        def execute_command(self, number: int) -> int:
            running.append(number)
            most.append(len(running))
            time.sleep(0.001)
            running.remove(number)
            return number

    monkeypatch.setattr(redis, "Redis", Older)
    client: Any = plain_client(SimpleNamespace(pool=None), single=True)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client.execute_command, range(20))) == list(range(20))
    assert max(most) == 1
