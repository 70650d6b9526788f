"""How long a process that uses celery_resilience takes to import it, beside Celery.

    python benchmarks/imports.py [--rounds 20]

Each round starts a Python for each of four programs, in turn; each times its own imports, from the
first to the last. Printed are the medians and the ratios to Celery's own in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

APP = """
app = Celery("shop", broker="redis://")
{install}
@app.task
def charge(order_id): ...
app.finalize()
"""
PROGRAMS = {
    "import Celery": "from celery import Celery",
    "... celery_resilience": "from celery import Celery; import celery_resilience",
    "an app of Celery's": "from celery import Celery" + APP.format(install=""),
    "... with install(app)": "from celery import Celery; from celery_resilience import install"
    + APP.format(install="install(app)"),
}
BESIDE = {"... celery_resilience": "import Celery", "... with install(app)": "an app of Celery's"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_ in range(options.rounds + 1):
        names = [*PROGRAMS] if round_ % 2 else [*PROGRAMS][::-1]
        for name in names:
            took = run(PROGRAMS[name])
            if round_:  # the first fills the caches of bytecode and files
                times[name].append(took)
    rows = [row(name, times) for name in PROGRAMS]
    if options.as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'program':22} {'median':>9} {'ratio':>6}  added")
    for line in rows:
        if line["ratio"] is None:
            print(f"{line['program']:22} {line['median']:6.1f} ms")
        else:
            print(
                f"{line['program']:22} {line['median']:6.1f} ms {line['ratio']:6.2f}"
                f"  {line['added']:.1f} ms"
            )


def row(name: str, times: dict[str, list[float]]) -> dict[str, object]:
    beside = times.get(BESIDE.get(name, ""))
    pairs = [*zip(times[name], beside, strict=True)] if beside else []
    return {
        "program": name,
        "median": statistics.median(times[name]),
        "ratio": statistics.median(ours / stock for ours, stock in pairs) if pairs else None,
        "added": statistics.median(ours - stock for ours, stock in pairs) if pairs else None,
    }


def run(program: str) -> float:
    """Milliseconds."""
    code = (
        f"import time\nbegin = time.perf_counter()\n{program}\nprint(time.perf_counter() - begin)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout) * 1000


if __name__ == "__main__":
    main()
