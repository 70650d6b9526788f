"""Which redelivered message starts, waits, or is asked for: the plan, as a table."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from celery_resilience.messages.history import History
from celery_resilience.worker.start_plan import (
    TURN,
    AskPeers,
    Counting,
    Facts,
    Plan,
    Requeue,
    Start,
    counted,
    plan_start,
)

NOW = 100.0


def history(redeliveries: int, elsewhere: bool = False) -> History:
    return History(
        crash_redeliveries=redeliveries,
        redelivered_at=NOW if redeliveries else None,
        elsewhere=elsewhere,
    )


def plan(counting: Counting, redeliveries: int, limit: int = 3, **facts: bool) -> Plan:
    elsewhere = facts.pop("elsewhere", False)
    return plan_start(Facts(history(redeliveries, elsewhere), NOW, limit, **facts), counting)


FREE: dict[str, bool] = {}
OTHERS = {"others_run": True}
ISOLATED = {"others_run": True, "isolated_runs": True}
BESIDE, ALONE = False, True


@pytest.mark.parametrize(
    ("redeliveries", "limit", "facts", "planned"),
    [
        # The limit is the number of starts.
        (0, 1, FREE, AskPeers(history(1))),
        (0, 2, FREE, Start(history(1), ALONE)),
        (0, 3, FREE, Start(history(1), BESIDE)),
        (1, 3, FREE, Start(history(2), ALONE)),
        (1, 9, FREE, Start(history(2), ALONE)),
        (2, 3, FREE, AskPeers(history(3))),
        (2, 3, ISOLATED, AskPeers(history(3))),
        # Beside others, but not beside one in isolation: that is counted.
        (0, 3, OTHERS, Start(history(1), BESIDE)),
        (0, 3, ISOLATED, Requeue(history(1), TURN)),
        # In isolation beside no other; it has not started, and that is not counted.
        (0, 2, OTHERS, Requeue(history(0), TURN)),
        (1, 3, OTHERS, Requeue(history(1), TURN)),
        (1, 3, ISOLATED, Requeue(history(1), TURN)),
        # The header says so where Redis does not.
        (1, 3, {"redelivered": False}, Start(history(2), ALONE)),
        (1, 3, {"waited": True}, Start(history(2), ALONE)),
    ],
)
def test_plan_where_starts_are_recorded(
    redeliveries: int, limit: int, facts: dict[str, bool], planned: Plan
) -> None:
    assert plan(Counting.STARTS, redeliveries, limit, **facts) == planned


NOT_AGAIN = {"redelivered": False}
WAITED = {"redelivered": True, "waited": True}


@pytest.mark.parametrize(
    ("redeliveries", "limit", "facts", "planned"),
    [
        # A redelivery is counted and published first; what comes of that starts.
        (0, 3, FREE, Requeue(history(1), 0)),
        (1, 3, FREE, Requeue(history(2), 0)),
        (2, 3, FREE, AskPeers(history(3))),
        (0, 1, FREE, AskPeers(history(1))),
        (1, 3, NOT_AGAIN, Start(history(1), BESIDE)),
        (1, 2, NOT_AGAIN, Start(history(1), ALONE)),
        (2, 3, NOT_AGAIN, Start(history(2), ALONE)),
        (3, 3, NOT_AGAIN, AskPeers(history(3))),
        # What waits is counted whether it was to be isolated or not: RabbitMQ counts it too.
        (0, 3, ISOLATED, Requeue(history(1), TURN)),
        (1, 3, OTHERS, Requeue(history(2), TURN)),
        (2, 3, {**OTHERS, **NOT_AGAIN}, Requeue(history(2), TURN)),
        (1, 3, {**ISOLATED, **NOT_AGAIN}, Requeue(history(1), TURN)),
        (1, 3, {**OTHERS, **NOT_AGAIN}, Start(history(1), BESIDE)),
        # One that a worker has held until its turn was counted, and is published once more.
        (1, 3, WAITED, Requeue(history(1), 0)),
        (2, 3, {**WAITED, **OTHERS}, Requeue(history(2), TURN)),
        (2, 3, {"redelivered": False, "waited": True}, Requeue(history(2), 0)),
    ],
)
def test_plan_where_redeliveries_are_counted(
    redeliveries: int, limit: int, facts: dict[str, bool], planned: Plan
) -> None:
    assert plan(Counting.REDELIVERIES, redeliveries, limit, **facts) == planned


@pytest.mark.parametrize("counting", Counting)
def test_message_that_ran_elsewhere_is_asked_for_before_its_limit(counting: Counting) -> None:
    planned = plan(counting, 1, limit=9, elsewhere=True)
    assert planned == AskPeers(history(2, elsewhere=True))


@pytest.mark.parametrize("counting", Counting)
def test_start_is_the_last_only_in_isolation(counting: Counting) -> None:
    """Whatever else is the case: a body that starts for the last time is beside no other."""
    names = ("redelivered", "waited", "others_run", "isolated_runs")
    for redeliveries, limit, *told in product(range(5), range(1, 5), *[(False, True)] * 4):
        planned = plan(counting, redeliveries, limit, **dict(zip(names, told, strict=True)))
        if isinstance(planned, Start):
            count = planned.history.crash_redeliveries
            assert count < limit
            assert planned.isolated is (count > 1 or count == limit - 1)
            assert not told[2 if planned.isolated else 3]


def test_first_redelivery_keeps_its_moment() -> None:
    first = counted(History(), NOW)
    assert counted(first, NOW + 9) == replace(first, crash_redeliveries=2)
