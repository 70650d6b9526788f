"""The table of deadlines: each row can be hung by a test that exists."""

from __future__ import annotations

import math
from pathlib import Path

from celery_resilience.brokers.redis.leases import LEASE, RENEW
from celery_resilience.worker.lease import DOUBTED
from docs.deadlines import DEADLINES
from tests.faults.row import rows

ROOT = Path(__file__).parents[2]


def test_deadlines_have_a_test_that_lets_each_hang() -> None:
    modules = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    known = {row.name for row in rows()} | modules
    for deadline in DEADLINES:
        assert deadline.test in known, deadline.what
        if deadline.seconds is None:
            assert "`" in deadline.option, f"{deadline.what}: no option bounds it"


def test_deadlines_are_finite_and_a_lease_outlives_them() -> None:
    """A connection that hangs is replaced before the others count the worker as dead."""
    assert all(0 < each.seconds < math.inf for each in DEADLINES if each.seconds is not None)
    lease = next(each for each in DEADLINES if "lease" in each.what)
    assert lease.seconds is not None
    assert RENEW + 2 * lease.seconds < DOUBTED < LEASE
