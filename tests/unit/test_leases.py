"""What could not be let go while the connection was gone is let go later, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fakeredis
import pytest

from celery_resilience.brokers.held import Holder, Leases


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
def holder(client: Client) -> Holder:
    holder = Holder()
    client.hset(holder.key, mapping={"done": "1", "late": "2", "runs": "3"})
    holder.unsent.append("done")
    return holder


def test_what_is_done_is_let_go(client: Client, holder: Holder) -> None:
    Leases(client, "").let_go(holder)
    assert set(client.hkeys(holder.key)) == {b"late", b"runs"}
    assert holder.unsent == []


def test_what_ends_while_another_thread_lets_go_is_not_forgotten(
    client: Client, holder: Holder
) -> None:
    """The next connection and the keeper do it at the same moment, and a task ends then."""
    leases = Leases(client, "")

    def meanwhile() -> None:
        leases.let_go(holder)
        holder.unsent.append("late")

    client.meanwhile = meanwhile
    leases.let_go(holder)
    assert holder.unsent == ["late"]
    leases.let_go(holder)
    assert set(client.hkeys(holder.key)) == {b"runs"}
