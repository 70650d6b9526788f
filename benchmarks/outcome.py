"""What it costs that outcomes can be told: the success of a task, while nobody listens.

    python benchmarks/outcome.py [--calls 1000000] [--rounds 9]

Celery's ``on_success`` is stubbed: what is printed is the difference between a call of it and a
call of ours around it, in microseconds of processor time: the median of the rounds, and the least.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from functools import partial
from typing import Any

from celery_resilience.worker.outcome import telling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    stock, ours = Request(), Telling()
    told = (0, None, 0.1)
    costs = []
    for _ in range(options.rounds):
        before, after = (
            timeit.timeit(
                partial(each.on_success, told), timer=time.process_time, number=options.calls
            )
            for each in (stock, ours)
        )
        costs.append((after - before) / options.calls * 1e6)
    print(f"median {statistics.median(costs):.3f} us, least {min(costs):.3f} us a success")


class Request:
    _listeners = ()

    def on_success(self, told: Any, **options: Any) -> None: ...


class Telling(Request):
    on_success = telling(Request.on_success)


if __name__ == "__main__":
    main()
