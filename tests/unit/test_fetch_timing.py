"""When a Redis channel fetches, and what it takes for the cause: without a server or a clock."""

from __future__ import annotations

from typing import Any

import pytest

from celery_resilience.transport.slots import prefetch_room
from celery_resilience.transport.timing import (
    ASKED,
    EMPTIED,
    EXPECTED,
    NOTIFIED,
    Cause,
    FetchTiming,
)

SAFETY, LIKELY, TOLD = Cause

EMPTY = ("answered", False, None)
MORE = ("answered", True, None)
POLLING = ("answered", False, 0.1)
ASK = ("asked", 100.0, 5.0)
WORD = ("notified", 100.0, 0.5)

#: What happens, the cause afterwards, and when the next fetch is due with a patience of 5 s.
HISTORIES: list[tuple[list[tuple[Any, ...]], Cause, float]] = [
    ([], LIKELY, 0.0),
    ([ASK], SAFETY, 105.0),
    ([ASK, EMPTY], SAFETY, 105.0),
    ([ASK, MORE], LIKELY, 0.0),
    ([ASK, POLLING], LIKELY, 100.1),
    ([ASK, EMPTY, WORD], TOLD, 100.5),
    ([ASK, WORD, EMPTY], TOLD, 100.5),  # told while the answer was on its way
    ([ASK, WORD, MORE], TOLD, 0.0),
    ([ASK, ("expected",), EMPTY], LIKELY, 0.0),  # a new consumer has come meanwhile
    ([ASK, EMPTY, ("expected",)], LIKELY, 0.0),
    ([ASK, EMPTY, WORD, ("expected",)], TOLD, 0.0),
    ([ASK, EMPTY, WORD, ASK, EMPTY], SAFETY, 105.0),
    ([ASK, ("refused", 100.0)], LIKELY, 101.0),
    ([ASK, EMPTY, WORD, ("refused", 100.0)], TOLD, 101.0),
]


@pytest.mark.parametrize(("history", "cause", "due"), HISTORIES)
def test_fetch_has_a_cause_and_a_time(
    history: list[tuple[Any, ...]], cause: Cause, due: float
) -> None:
    timing = FetchTiming()
    for event, *args in history:
        getattr(timing, event)(*args)
    assert timing.cause is cause
    assert timing.due_at == due


@pytest.mark.parametrize(("before", "cause"), [([], LIKELY), ([ASK], SAFETY), ([ASK, WORD], TOLD)])
def test_fetch_remembers_what_it_was_asked_for(before: list[tuple[Any, ...]], cause: Cause) -> None:
    timing = FetchTiming()
    for event, *args in [*before, ASK]:
        getattr(timing, event)(*args)
    assert timing.asked_for is cause


def test_fetch_without_a_cause_waits_for_its_patience() -> None:
    timing = FetchTiming()
    timing.asked(100.0, 5.0)
    timing.answered(False, None)
    assert not timing.is_due(104.9)
    assert timing.is_due(105.0)
    timing.notified(101.0, 0.5)
    assert not timing.is_due(101.4)
    assert timing.is_due(101.5)


@pytest.mark.parametrize("before", Cause)
def test_cause_that_was_told_is_kept_until_it_is_asked_for(before: Cause) -> None:
    assert NOTIFIED[before] is TOLD
    assert ASKED[before] is SAFETY
    assert EXPECTED[before] is (TOLD if before is TOLD else LIKELY)
    assert EMPTIED[before] is before, "it arose while the answer was on its way"


class Qos:
    def __init__(self, may: bool, room: int | None) -> None:
        self._may, self._room = may, room

    def can_consume(self) -> bool:
        return self._may

    def can_consume_max_estimate(self) -> int | None:
        return self._room


@pytest.mark.parametrize(
    ("may", "room", "expected"), [(False, 4, 0), (True, 4, 4), (True, None, 100), (True, 0, 0)]
)
def test_prefetch_count_leaves_room(may: bool, room: int | None, expected: int) -> None:
    assert prefetch_room(Qos(may, room), 100) == expected


def test_prefetch_that_celery_has_disabled_leaves_room_for_one() -> None:
    qos = Qos(True, 10)
    qos.can_consume = lambda: True  # type: ignore[method-assign]
    assert prefetch_room(qos, 100) == 1
