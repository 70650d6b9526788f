"""How much of a burst a worker takes for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience.transport import slots
from celery_resilience.transport.slots import Pace, Slots, most

counts = st.integers(0, 500)


@given(wanted=counts, number=st.integers(1, 500), begun=counts, acknowledged=counts, quick=counts)
def test_how_much_is_taken(
    wanted: int, number: int, begun: int, acknowledged: int, quick: int
) -> None:
    taken = most(wanted, number, begun, acknowledged, quick)
    free = max(0, number - begun)
    assert 0 <= taken <= wanted
    assert taken <= free + quick  # no more than is begun at once, and what is finished soon
    assert most(wanted, number, begun, acknowledged, 0) == min(wanted, free)
    assert taken >= min(wanted, free)  # no slot stays free
    if wanted:
        assert taken or begun >= number
    assert taken <= most(wanted, number, begun, 0, quick)
    assert taken <= most(wanted, number + 1, begun, acknowledged, quick)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(slots, "monotonic", made)
    return made


def finish(pace: Pace, tags: str, count: int) -> None:
    for n in range(count):
        pace.finished(f"{tags}{n + 1}")


def test_quick_messages_are_counted_for_fifty_milliseconds(clock: Clock) -> None:
    pace = Pace()
    assert pace.quick() == 0
    pace.came("a.1.")
    clock.now += 0.01
    finish(pace, "a.1.", 7)
    assert pace.quick() == 7
    clock.now += 0.06
    assert pace.quick() == 7  # those of the 50 ms before
    clock.now += 0.06
    assert pace.quick() == 0


def test_long_ones_that_end_together_are_no_quick_ones(clock: Clock) -> None:
    pace = Pace()
    pace.came("a.1.")
    clock.now += 2
    finish(pace, "a.1.", 8)
    finish(pace, "another's", 8)  # a tag that no take of ours has given
    assert pace.quick() == 0


def test_record_of_takes_does_not_grow(clock: Clock) -> None:
    pace = Pace()
    for n in range(1000):
        pace.came(f"a.{n}.")
        clock.now += 0.01
    assert len(pace._came) < 20


class Pool(SimpleNamespace):
    uses_semaphore = True


def worker(number: Any = 2, **controller: Any) -> tuple[Any, Any, Slots]:
    """A channel, and the slots of a worker that consumes through it."""
    channel = SimpleNamespace(
        closed=False, qos=SimpleNamespace(_delivered=dict.fromkeys(range(9)), _dirty=set())
    )
    pool = Pool(num_processes=number)
    consumer = SimpleNamespace(pool=pool, controller=SimpleNamespace(**controller), hub=object())
    return channel, pool, Slots(consumer, channel)


class Request:
    def __init__(self, channel: Any, acknowledged: bool = False) -> None:
        self._message, self.acknowledged = SimpleNamespace(channel=channel), acknowledged


@pytest.fixture
def reserved() -> Any:
    assert not state.reserved_requests
    kept: list[Request] = []

    def reserve(*args: Any) -> None:
        kept.append(Request(*args))
        state.reserved_requests.add(kept[-1])
        if kept[-1].acknowledged:
            state.active_requests.add(kept[-1])

    yield reserve
    state.reserved_requests.clear()
    state.active_requests.clear()


def test_worker_takes_what_its_pool_can_begin(reserved: Any) -> None:
    channel, pool, slots = worker(2)
    assert slots.room(8, 0) == 2
    assert slots.room(1, 0) == 1
    assert slots.room(8, 1) == 1  # one was taken and not delivered yet
    reserved(channel)
    assert slots.room(8, 0) == 1
    reserved(channel)
    assert slots.room(8, 0) == 0
    pool.num_processes = 5
    assert slots.room(8, 0) == 3
    pool.num_processes = 1
    assert slots.room(8, 0) == 0


def test_pool_of_greenlets_has_the_slots_of_its_size() -> None:
    """Until Celery 5.7 it tells how many of them run."""
    _, pool, slots = worker(1)
    pool._pool = SimpleNamespace(size=100)
    assert slots.room(400, 0) == 100


def test_pool_that_does_not_tell_is_given_what_the_prefetch_count_allows() -> None:
    assert worker(None)[2].room(8, 0) == 8


def test_slots_that_an_autoscaler_would_add_are_free() -> None:
    scaler = SimpleNamespace(max_concurrency=10)
    assert worker(1, autoscaler=scaler)[2].room(40, 0) == 10
    assert worker(1, autoscaler=None)[2].room(40, 0) == 1


def test_another_worker_in_the_process_is_none_of_ours(reserved: Any) -> None:
    _channel, _, slots = worker(1)
    other = SimpleNamespace(closed=False)
    for _ in range(5):
        reserved(other)
    assert slots.room(4, 0) == 1
    reserved(SimpleNamespace(closed=True))  # our connection was lost, the task goes on
    assert slots.room(4, 0) == 0


def test_early_ack_is_no_sign_of_quick_tasks(reserved: Any, clock: Clock) -> None:
    channel, _, slots = worker(2)
    channel.qos._delivered = {}
    slots.pace.came("a.1.")
    for n in range(2):
        reserved(channel, True)
        slots.pace.finished(f"a.1.{n}")
    assert slots.pace.quick() == 2
    assert slots.room(8, 0) == 0


def test_requests_that_celery_has_forgotten_to_end_hold_no_slot(reserved: Any) -> None:
    channel, _, slots = worker(2)
    reserved(channel)
    reserved(channel)
    channel.qos._delivered = {}
    assert slots.room(8, 0) == 2
