"""How long it takes to classify an exception and decide about it.

    python benchmarks/decide.py

Every real exception of the classifier's tests (needs what the tests need: ``make setup``) is
classified and put to a policy with four rules, some hundred times; the median of these is the
exception's time. Printed are the median, the 90th percentile and the longest of the exceptions'
times, and the same for the first exception of its class, whose rules are still to be worked out.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from celery_resilience import Failure, Policy, classify, on
from celery_resilience.classify import plan as plans

POLICY = Policy(
    on(ZeroDivisionError).dead_letter(),
    on(EOFError).discard("nobody waits for it"),
    on(BufferError).retry(max_retries=20, delay=60),
    on(StopIteration).retry(max_retries=8, backoff=2, backoff_max=600),
)
RANDOM = random.Random(1)


def decide(exc: BaseException) -> None:
    verdict = classify(exc)
    failure = Failure(exc, verdict, task="shop.charge", attempt=2, retries=1, age=3.5)
    POLICY.decide(failure, RANDOM)


def timed(exc: BaseException) -> float:
    """Microseconds."""
    begin = time.perf_counter_ns()
    decide(exc)
    return (time.perf_counter_ns() - begin) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=300, help="of each exception")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    from tests.classify.test_verdicts import CASES

    first, again = {}, {}
    for case in CASES:
        try:
            exc = case.factory()
        except pytest.skip.Exception:
            continue  # its library is not installed
        plans._plans.clear()
        first[case.id] = timed(exc)
        again[case.id] = statistics.median(timed(exc) for _ in range(options.times))
    rows = [summary("first of its class", first), summary("any other", again)]
    if options.as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'exception':20} {'cases':>6} {'median':>10} {'p90':>10} {'longest':>10}")
    for row in rows:
        print(
            f"{row['exception']:20} {row['cases']:6} {row['median']:7.1f} µs {row['p90']:7.1f} µs"
            f" {row['longest']:7.1f} µs ({row['which']})"
        )


def summary(name: str, times: dict[str, float]) -> dict[str, object]:
    in_order = sorted(times.values())
    return {
        "exception": name,
        "cases": len(in_order),
        "median": statistics.median(in_order),
        "p90": statistics.quantiles(in_order, n=10)[-1],
        "longest": in_order[-1],
        "which": max(times, key=times.__getitem__),
    }


if __name__ == "__main__":
    main()
