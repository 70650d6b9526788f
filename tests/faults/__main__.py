"""``python -m tests.faults``: play the fault matrix, print the table, fail if a promise broke.

Each cell is played on servers and workers of its own; nothing of yours is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing.util
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from celery_resilience.errors import BrokerError
from tests.faults.count import Count
from tests.faults.row import ALL, EVERYWHERE, Cell, cells
from tests.faults.scene import Servers, play
from tests.servers import ServerMissing

_COLUMNS = ("sent", "result", "waiting", "letters", "dropped", "stuck", "LOST", "doubled")
_WIDTHS = (4, 6, 7, 7, 7, 5, 4, 7)


def line(cell: Cell, count: Count | None, said: str) -> str:
    """One line of the table."""
    if count is None:
        return f"{cell.row.name:<14} {cell.broker:<16} {cell.pool:<8} {said}"
    doubled = f"{count.doubled}" + (f"+{count.allowed}" if count.allowed else "")
    values = (count.sent, count.result, count.waiting, count.letters, count.dropped, count.stuck,
              count.lost, doubled)  # fmt: skip
    numbers = "  ".join(f"{v!s:>{w}}" for v, w in zip(values, _WIDTHS, strict=True))
    return f"{cell.row.name:<14} {cell.broker:<16} {cell.pool:<8} {numbers}  {said}"


def words() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--row", action="append", default=[], help="2, or 2-segfault")
    parser.add_argument("--broker", action="append", default=[], choices=[*ALL])
    parser.add_argument("--pool", action="append", default=[], choices=[*EVERYWHERE])
    parser.add_argument(
        "--stock", nargs="?", const="early", default="", choices=["early", "late"],
        help="watch stock Celery instead: with its defaults, or with acks_late and "
        "reject_on_worker_lost",
    )  # fmt: skip
    parser.add_argument(
        "--rabbitmq", default=os.environ.get("RABBITMQ", ""), choices=["", "4"],
        help="play on a RabbitMQ 4 instead of the one that is installed",
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="outages of 60 s instead of 5 s")
    parser.add_argument("--ci", action="store_true", help="only the cells that CI plays")
    parser.add_argument("--list", action="store_true", help="name the rows and play none")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="play N cells at once, on N sets of servers; lines come as the cells end",
    )  # fmt: skip
    parser.add_argument("--logs", type=Path, help="keep the workers' logs in this directory")
    return parser


class Played(NamedTuple):
    """What became of one cell."""

    text: str
    broken: bool = False
    skipped: bool = False


def _play(cell: Cell, servers: Servers, options: argparse.Namespace, logs: Path) -> Played:
    directory = logs / str(cell)
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.iterdir():
        left.unlink()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the ends of the workers' logs
            count = play(cell, servers, directory, options.stock, options.full)
    except (BrokerError, ServerMissing) as exc:
        return Played(line(cell, None, f"skipped: {exc}"), skipped=True)
    except Exception as exc:
        (directory / "error.txt").write_text(traceback.format_exc())
        return Played(line(cell, None, f"BROKEN: {type(exc).__name__}: {exc}"), broken=True)
    if options.stock:
        return Played(line(cell, count, f"stock  {count.seconds:.0f} s"))
    said = "kept, but for kombu's window" if count.lost else "kept"
    said = f"{said if count.kept else 'BROKEN'}  {count.seconds:.0f} s"
    complaints = [f"    {complaint}" for complaint in count.complaints[:5]]
    return Played("\n".join([line(cell, count, said), *complaints]), broken=not count.kept)


def _play_all(chosen: Sequence[Cell], options: argparse.Namespace, logs: Path) -> Iterator[Played]:
    if options.jobs == 1:
        with Servers(version=options.rabbitmq) as servers:
            for cell in chosen:
                yield _play(cell, servers, options, logs)
        return
    fork = multiprocessing.get_context("fork")  # this module is no one that is imported again
    with ProcessPoolExecutor(options.jobs, fork, _open_servers, (options.rabbitmq,)) as pool:
        named = [(cell.row.name, cell.broker, cell.pool) for cell in chosen]
        for future in as_completed([pool.submit(_play_here, n, options, logs) for n in named]):
            yield future.result()


def _open_servers(version: str) -> None:
    global _servers
    _servers = Servers(version=version)
    multiprocessing.util.Finalize(None, _servers.__exit__, exitpriority=10)


def _play_here(named: tuple[str, str, str], options: argparse.Namespace, logs: Path) -> Played:
    name, broker, pool = named
    cell = next(cell for cell in cells([name], [broker], [pool]) if cell.row.name == name)
    return _play(cell, _servers, options, logs)


#: The servers of this process, where it plays one of several jobs.
_servers: Servers


def main(argv: Sequence[str] | None = None) -> int:
    """Play the rows that are asked for; 1 if one of them broke its promise."""
    options = words().parse_args(argv)
    chosen = list(cells(options.row, options.broker, options.pool))
    if options.ci:
        chosen = [cell for cell in chosen if f"{cell.broker}/{cell.pool}" in cell.row.ci]
    if options.list:
        for row in dict.fromkeys(cell.row for cell in chosen):
            print(f"{row.name:<14} {row.what}")
        return 0
    heads = "  ".join(f"{c:>{w}}" for c, w in zip(_COLUMNS, _WIDTHS, strict=True))
    print(f"{'row':<14} {'broker':<16} {'pool':<8} {heads}")
    broken, skipped, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for played in _play_all(chosen, options, options.logs or Path(scratch)):
            print(played.text, flush=True)
            broken += played.broken
            skipped += played.skipped
    seconds = time.monotonic() - began
    print(f"{len(chosen)} cells in {seconds:.0f} s, {broken} broken, {skipped} skipped")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
