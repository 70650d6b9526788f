"""What a fleet of idle consumers costs the server, and how soon one of them has a message (Redis).

    python benchmarks/fleet.py [--consumers 50 --consumers 500] [--seconds 10] [--before TREE]

Consumers on kombu's transport and on ours, in turn, on a Redis of its own, without a file. Each has
connections of its own; 25 are in a process, and take turns there. Ours hold what they take as
workers do; with ``--leases`` they renew their leases too. Each acknowledges at once.

Asked is, with nothing to do and with 50 messages a second: how many commands Redis carries out a
second (those that scripts call included), how much of a core it takes, and how long a message takes
from before it is sent to its consumer's callback (median); with nothing to do, one that is sent
after three seconds of nothing. ``refused``: the user may not use CLIENT TRACKING.

At the end each side's medians of the rounds are put beside kombu's: commands and core as ratios,
the message's time as a difference, and whether they are at most 2, 2 and 5 ms.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

QUEUE = "fleet"
#: How many consumers are in one process.
TOGETHER = 25
RATE = 50
SINGLES = 9
#: What may be at most: commands and core as times kombu's, and a message's time in ms more.
LIMITS = 2.0, 2.0, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--consumers", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--leases", action="store_true", help="ours renew them, as workers do")
    parser.add_argument("--before", type=Path, help="an older checkout of this project")
    parser.add_argument("--side", action="append", choices=["kombu", "ours", "refused", "before"])
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.consume:
        consume(options.consume, *options.consumers, leases=options.leases)
        return
    sides = ["kombu", "ours", "refused", *(["before"] if options.before else [])]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    heads = f"{'commands/s':>10} {'core %':>7} {'p50 ms':>7} {'max':>7}"
    print(f"{'':10} {'number':>6} {'rate':>5} {heads}")
    seen: dict[tuple[int, int], dict[str, list[Figures]]] = {}
    for round_ in range(options.rounds):
        for number in options.consumers or (50, 500):
            order = [side for side in sides if side in (options.side or sides)]
            for side in order if round_ % 2 == 0 else order[::-1]:
                for rate, commands, core, delays in play(options, side, number):
                    p50, most = statistics.median(delays), max(delays)
                    of_all = seen.setdefault((number, rate), {})
                    of_all.setdefault(side, []).append((commands, core, p50))
                    print(
                        f"{side:10} {number:6} {rate:5} {commands:10.0f} {core:7.2f} {p50:7.2f} "
                        f"{most:7.2f}",
                        flush=True,
                    )
    print(f"load {os.getloadavg()[0]:.1f}")
    for (number, rate), sides_ in sorted(seen.items()):
        compare(number, rate, {side: middle(figures) for side, figures in sides_.items()})


#: Commands per second, percent of a core, and a message's time in ms.
Figures = tuple[float, float, float]


def middle(rounds: list[Figures]) -> Figures:
    commands, core, p50 = (statistics.median(values) for values in zip(*rounds, strict=True))
    return commands, core, p50


def compare(number: int, rate: int, sides: dict[str, Figures]) -> None:
    """Print each side's figures beside kombu's."""
    kombus = sides.pop("kombu", None)
    if kombus is None:
        return
    for side, figures in sides.items():
        found = figures[0] / kombus[0], figures[1] / kombus[1], figures[2] - kombus[2]
        missed = [
            name
            for name, value, limit in zip(("commands", "core", "p50"), found, LIMITS, strict=True)
            if value > limit
        ]
        print(
            f"{side:10} {number:6} {rate:5} commands {found[0]:.2f} x, core {found[1]:.2f} x, "
            f"p50 {found[2]:+.1f} ms: {'misses ' + ', '.join(missed) if missed else 'holds'}"
        )


def play(
    options: argparse.Namespace, side: str, number: int
) -> Iterator[tuple[int, float, float, list[float]]]:
    """Rate, commands per second, percent of a core, and delays in ms."""
    import redis
    from kombu import Connection

    from celery_resilience.testing.server import EmbeddedServer

    server_options = ["--save", "", "--appendonly", "no", "--maxclients", "4000"]
    with EmbeddedServer(options=server_options) as server, tempfile.NamedTemporaryFile() as file:
        db = redis.Redis.from_url(server.url)
        if side == "refused":
            db.execute_command("ACL", "SETUSER", "default", "-client|tracking")
        url = server.broker_url if side == "kombu" else f"resilient-{server.broker_url}"
        tree = options.before.resolve() if side == "before" else HERE.parent
        fleet = consumers(url, tree, number, file.name, options.leases)
        with fleet, Connection(server.broker_url) as connection:
            producer = connection.Producer(auto_declare=False)
            seen = 0

            def send() -> None:
                producer.publish(f"{time.time()}", exchange="", routing_key=QUEUE)

            def delays(count: int) -> list[float]:
                nonlocal seen
                until = time.time() + 30
                while len(lines := Path(file.name).read_text().split()) < seen + count:
                    if time.time() > until:
                        raise SystemExit(f"{side}: {seen + count - len(lines)} have not come")
                    time.sleep(0.05)
                found = [float(line) for line in lines[seen:]]
                seen += count
                return found

            for _ in range(20):
                send()
            delays(20)
            time.sleep(5)
            idle = figures(db, lambda: time.sleep(options.seconds))
            singles: list[float] = []
            for _ in range(SINGLES):
                time.sleep(3)
                send()
                singles += delays(1)
            yield 0, *idle, singles
            count = int(RATE * options.seconds)

            def stream(count: int) -> None:
                began = time.perf_counter()
                for n in range(count):
                    time.sleep(max(0.0, began + n / RATE - time.perf_counter()))
                    send()

            stream(3 * RATE)  # until they have settled
            delays(3 * RATE)
            busy = figures(db, lambda: stream(count))
            yield RATE, *busy, delays(count)


def figures(db: Any, run: Any) -> tuple[float, float]:
    """Commands per second and percent of a core while *run* runs."""

    def now() -> tuple[float, float, float]:
        stats, cpu = db.info("stats"), db.info("cpu")
        used = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
        return time.perf_counter(), stats["total_commands_processed"], used

    began, before, used = now()
    run()
    ended, after, more = now()
    return (after - before) / (ended - began), (more - used) / (ended - began) * 100


@contextmanager
def consumers(url: str, tree: Path, number: int, path: str, leases: bool) -> Iterator[None]:
    environment = {**os.environ, "BROKER_URL": url, "PYTHONPATH": str(tree)}
    made = []
    try:
        for first in range(0, number, TOGETHER):
            here = min(number - first, TOGETHER)
            command = [sys.executable, str(HERE / "fleet.py"), "--consume", path]
            command += ["--consumers", str(number), "--consumers", str(here)]
            command += ["--leases"] if leases else []
            made.append(
                subprocess.Popen(command, env=environment, cwd=HERE, stdout=subprocess.PIPE)
            )
        for each in made:
            assert each.stdout
            assert each.stdout.readline() == b"ready\n"
        yield
    finally:
        for each in made:
            each.kill()
            each.wait()


class Loop:
    """Waits for many consumers at once; each has a :class:`Place`, which is all that it sees."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        #: By a file's number: whose it is, and what to call.
        self.readers: dict[int, tuple[Place, Any]] = {}
        self.timers: list[tuple[float, int, Place, Any]] = []
        self.count = itertools.count()

    def run(self) -> None:
        while True:
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else 1.0
            for number, _ in self.epoll.poll(wait):
                place, call = self.readers.get(number, (None, None))
                if place is not None:
                    if call is not None:
                        with suppress(Empty):  # as in Celery's
                            call()
                    place.turn()
            while self.timers and self.timers[0][0] <= time.monotonic():
                _, _, place, call = heapq.heappop(self.timers)
                call()
                place.turn()


class Place:
    """What one consumer takes for Celery's event loop: only what happens here gives it a turn."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.on_tick = loop, set()  # type: ignore[var-annotated]
        self.poller = self

    def turn(self) -> None:
        for call in list(self.on_tick):
            call()

    def register(self, file: Any, flags: int) -> None:
        self._watch(file if isinstance(file, int) else file.fileno(), None)

    def unregister(self, file: Any) -> None:
        self.remove(file if isinstance(file, int) else file.fileno())

    def add_reader(self, number: int, call: Any, *args: Any) -> None:
        self._watch(number, partial(call, *args))

    def remove(self, number: int) -> None:
        if self.loop.readers.pop(number, None):
            with suppress(OSError):
                self.loop.epoll.unregister(number)

    remove_reader = remove

    def _watch(self, number: int, call: Any) -> None:
        known = self.loop.readers.get(number, (None, None))
        if number not in self.loop.readers:
            with suppress(FileExistsError):
                self.loop.epoll.register(number, select.EPOLLIN | select.EPOLLHUP)
        self.loop.readers[number] = self, call or known[1]

    def call_later(self, delay: float, call: Any, *args: Any) -> Any:
        return self._call_at(time.monotonic() + delay, call, *args)

    def _call_at(self, at: float, call: Any, *args: Any) -> Any:
        entry = SimpleNamespace(cancelled=False)
        entry.cancel = lambda: setattr(entry, "cancelled", True)

        def fire() -> None:
            if not entry.cancelled:
                call(*args)

        heapq.heappush(self.loop.timers, (at, next(self.loop.count), self, fire))
        return entry

    def call_repeatedly(self, every: float, call: Any, *args: Any) -> Any:
        entry = SimpleNamespace(cancelled=False)
        entry.cancel = lambda: setattr(entry, "cancelled", True)

        def again(at: float) -> None:
            if not entry.cancelled:
                call(*args)
                self._call_at(at + every, again, at + every)

        at = time.monotonic() + every
        self._call_at(at, again, at)
        return entry


def consume(path: str, number: int, here: int, leases: bool) -> None:
    """Be *here* of a *number* of consumers.

    A line in the file at *path* for each message says how long ago it was sent, in ms.
    """
    from kombu import Connection, Consumer, Queue

    import celery_resilience
    from celery_resilience.brokers.redis.lease_qos import take_over
    from celery_resilience.brokers.redis.leases import RENEW, LeaseOwner, Leases, plain_client

    assert celery_resilience
    seen = os.open(path, os.O_WRONLY | os.O_APPEND)
    loop = Loop()

    def received(message: Any) -> None:
        os.write(seen, f"{(time.time() - float(message.body)) * 1000:.3f}\n".encode())
        message.ack()

    kept = []
    for n in range(here):
        place, connection = Place(loop), Connection(os.environ["BROKER_URL"])
        channel = connection.channel()
        if hasattr(channel, "lease_owner"):
            owner = LeaseOwner()
            take_over(channel, owner)
            renew = partial(Leases(plain_client(channel), "").renew, owner)
            renew()
            if leases:
                place.call_later(RENEW * n / here, place.call_repeatedly, RENEW, renew)
            else:
                owner.workers = number  # as the lease would tell
        consumer = Consumer(channel, [Queue(QUEUE)], on_message=received, auto_declare=False)
        consumer.qos(prefetch_count=2)
        connection.transport.register_with_event_loop(connection.connection, place)
        consumer.consume()
        place.turn()
        kept.append((connection, consumer))
    print("ready", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
