"""``python -m tests.faults.soak``: thousands of tasks while workers, children and broker die.

The faults are drawn from a seed, bounded in time and number; in the end every task is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.count import Count
from tests.faults.row import ALL, OURS, Cell, Row
from tests.faults.scene import Scene, Servers
from tests.worker import Worker

#: What may happen, and how likely each is.
_FAULTS = {"worker": 3, "main": 2, "child": 6, "broker": 1, "pause": 3, "term": 2, "cut": 2}


@dataclass
class Soak:
    """One run."""

    scene: Scene
    seed: int
    seconds: float
    workers: int = 3
    happened: Counter[str] = field(default_factory=Counter)
    #: The rules by which tasks that would have succeeded are letters.
    innocent: Counter[str] = field(default_factory=Counter)

    def run(self) -> Count:
        """Send and break until the time is over, then mend everything and count."""
        scene = self.scene
        chance = random.Random(self.seed)
        for _ in range(self.workers):
            scene.worker(supervised=True)
        until = time.monotonic() + self.seconds
        at = time.monotonic() + 2
        while time.monotonic() < until:
            self._send(chance)
            if time.monotonic() >= at:
                self._break(chance)
                at = time.monotonic() + chance.uniform(1.0, 4.0)
            scene.pause(0.1)
        scene.start_broker()
        scene.door.mend()
        for worker in scene.workers:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                worker.send(signal.SIGCONT)
        # The supervisor stays: tasks may be what kills.
        if scene.cell.broker in OURS:
            # What has its result may have been held by a worker that was killed before it could
            # acknowledge: others requeue it when the lease is over.
            with contextlib.suppress(AssertionError):
                scene.wait(
                    lambda: scene.places.are_final() and not scene.places.stuck(),
                    scene.patience,
                )
        count = scene.finish()
        for number, letters in scene.places.letters().items():
            if "result" in scene.tasks[number].ends:
                self.innocent.update(letter.rule for letter in letters)
        return count

    def _send(self, chance: random.Random) -> None:
        scene = self.scene
        for _ in range(chance.randrange(1, 4)):
            kind = chance.random()
            # Neither states a retry for the death of its process, which makes it a letter at once.
            either = {"ends": "result letter", "reasons": "worker_lost"}
            if kind < 0.55:
                scene.send("good", round(chance.uniform(0, 0.1), 3), **either)
            elif kind < 0.85:
                failures = chance.randrange(1, 4)
                seconds = round(chance.uniform(0, 0.05), 3)
                scene.send("flaky", failures, seconds, starts=failures + 1, **either)
            elif kind < 0.97:
                scene.send("hopeless", ends="letter", starts=4)
            else:
                scene.send("refuses", ends="letter")

    def _break(self, chance: random.Random) -> None:
        (what,) = chance.choices(list(_FAULTS), list(_FAULTS.values()))
        worker = chance.choice(self.scene.workers)
        with contextlib.suppress(ProcessLookupError, AssertionError):
            getattr(self, f"_{what}")(worker, chance)
            self.happened[what] += 1

    def _worker(self, worker: Worker, chance: random.Random) -> None:
        self.scene.kill(worker)

    def _main(self, worker: Worker, chance: random.Random) -> None:
        self.scene.kill(worker, main_alone=True)

    def _child(self, worker: Worker, chance: random.Random) -> None:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        if children:
            os.kill(int(chance.choice(children)), signal.SIGKILL)

    def _broker(self, worker: Worker, chance: random.Random) -> None:
        if self.happened["broker"] >= 1 + self.seconds // 60:
            return
        self.scene.kill_broker()
        self.scene.pause(chance.uniform(0.2, 2.0))
        self.scene.start_broker()

    def _pause(self, worker: Worker, chance: random.Random) -> None:
        """A network that is away for this worker, or a machine that swaps."""
        worker.send(signal.SIGSTOP)
        self.scene.pause(chance.uniform(0.2, 3.0))
        worker.send(signal.SIGCONT)

    def _term(self, worker: Worker, chance: random.Random) -> None:
        worker.send(signal.SIGTERM)

    def _cut(self, worker: Worker, chance: random.Random) -> None:
        self.scene.door.cut()
        self.scene.pause(chance.uniform(0.1, 1.5))
        self.scene.door.mend()


def soak(
    servers: Servers, directory: Path, broker: str, pool: str, seed: int, seconds: float
) -> tuple[Soak, Count]:
    """Run one soak and count."""
    row = Row(
        "soak", "random faults", lambda scene: None, doubles=99, forks=True, window=True,
        patience=180,
    )  # fmt: skip
    with Scene(Cell(row, broker, pool), servers, directory) as scene:
        run = Soak(scene, seed, seconds)
        return run, run.run()


def words() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed if not given")
    parser.add_argument("--broker", choices=ALL, default="redis")
    parser.add_argument(
        "--pool", choices=["prefork", "threads", "solo", "gevent"], default="prefork"
    )
    parser.add_argument("--logs", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one soak, print its figures; 1 if a promise was broken."""
    options = words().parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.broker}, {options.pool}, {options.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Servers() as servers:
        directory = options.logs or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            run, count = soak(
                servers, directory, options.broker, options.pool, seed, options.minutes * 60
            )
    print("faults   " + ", ".join(f"{name} {n}" for name, n in sorted(run.happened.items())))
    print(f"sent     {count.sent}\nresult   {count.result}\nletters  {count.letters}")
    print(f"waiting  {count.waiting}\nstuck    {count.stuck}\nLOST     {count.lost}")
    print(f"bodies started more often than asked for: {count.allowed + count.doubled}")
    for rule, many in run.innocent.most_common():
        print(f"letters of tasks that would have succeeded: {many} ({rule})")
    print(f"over after {count.seconds:.0f} s more")
    for complaint in count.complaints[:20]:
        print(f"    {complaint}")
    return 0 if count.kept else 1


if __name__ == "__main__":
    sys.exit(main())
