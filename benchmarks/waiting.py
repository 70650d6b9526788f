"""What it costs that retries wait: the worker, the broker, and how late they come.

    python benchmarks/waiting.py worker|broker|late|herd|rabbit|all

Each section starts servers and workers of its own. Printed is each figure, what is required of it
and whether that holds; ``all`` draws the plot as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from plot import draw  # noqa: E402
from side import Row, say  # noqa: E402
from waiting_broker import broker  # noqa: E402
from waiting_herd import herd  # noqa: E402
from waiting_late import late  # noqa: E402
from waiting_rabbit import rabbit  # noqa: E402
from waiting_worker import worker  # noqa: E402

SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "worker": worker,
    "broker": broker,
    "late": late,
    "herd": herd,
    "rabbit": rabbit,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=[*SECTIONS, "all"])
    parser.add_argument("--redis-server", metavar="PATH", help="the binary; else the one found")
    parser.add_argument("--waiting", type=int, default=20_000, help="worker: as many wait")
    parser.add_argument("--most", type=int, default=1_000_000, help="broker: from 1,000 up to this")
    parser.add_argument("--late", type=int, default=100_000, help="late: as many wait for hours")
    parser.add_argument("--seconds", type=float, default=20, help="late: for so long")
    parser.add_argument("--herd", type=int, default=10_000, help="herd: as many fail")
    parser.add_argument("--rabbit", type=int, default=1000, help="rabbit: as many fail")
    parser.add_argument("--rounds", type=int, default=5, help="of what is a ratio or a rate")
    parser.add_argument("--probes", type=int, default=100, help="of each worker, in each round")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--plot", metavar="PATH", type=Path, help="all: default docs/waiting.svg")
    options = parser.parse_args()
    options.steps = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= options.most]
    names = list(SECTIONS) if options.section == "all" else [options.section]
    rows, broken = [], False
    for name in names:
        try:
            for row in SECTIONS[name](options):
                rows.append(row)
        except SystemExit as exc:  # the figures of the others are still to be seen
            say(f"{name} has ended: {exc}")
            broken = True
        except KeyboardInterrupt:
            broken = True
            break
    if options.section == "all" or options.plot is not None:
        path = options.plot or HERE.parent / "docs" / "waiting.svg"
        path.write_text(draw(rows))
    if options.as_json:
        print(json.dumps([{**row._asdict(), "holds": row.holds} for row in rows], indent=2))
    else:
        show(rows)
    sys.exit(broken or any(row.holds is False for row in rows))


def show(rows: list[Row]) -> None:
    for section, figures in groupby(rows, key=lambda row: row.section):
        print(f"\n{section:<6}  {'':<38} {'waiting':>9}  {'figure':>18}  required")
        for row in figures:
            value = f"{row.value:,.{0 if row.value >= 1000 or row.value == 0 else 2}f} {row.unit}"
            print(f"{row.side:<6}  {row.what:<38} {row.waiting:>9,}  {value:>18}  {required(row)}")


def required(row: Row) -> str:
    if row.holds is None:
        return ""
    limit = f"<= {row.most:g}" if row.most is not None else f">= {row.least:,g}"
    return f"{limit:<10} {'holds' if row.holds else 'MISSED'}"


if __name__ == "__main__":
    main()
