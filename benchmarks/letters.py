"""How long it takes to look at, group and replay many dead letters, beside a loop of kombu's own.

    python benchmarks/letters.py [--letters 20000] [--rounds 5] [--broker redis classic quorum]

Each round a real worker (prefork, two processes) fails so many tasks, and is stopped. Then, in
turn: all letters are listed, grouped, and replayed with ``DeadLetters``. Beside each stands what
one would write by hand with kombu for the same queue: get every message and give all back; get
every message, publish it to another queue with a confirm, acknowledge it.
It starts servers of its own: a Redis for `redis`, a RabbitMQ for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Connection, Queue
from side import say

from celery_resilience import DeadLetters, install
from celery_resilience.testing.server import EmbeddedServer, leashed

HERE = Path(__file__).parent
LETTERS = "work.dead"
#: What a copy by hand keeps beside body and headers.
KEPT = ("correlation_id", "reply_to", "priority", "expiration", "delivery_mode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--letters", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    kinds = ("redis", "classic", "quorum")
    parser.add_argument("--broker", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    print(f"{options.letters:,} letters, median of {options.rounds} rounds\n")
    print(f"{'broker':8} {'what':8} {'letters/s':>10} {'by hand/s':>10} {'ratio':>6}")
    for kind in options.broker:
        with server(kind) as url:
            for what, ours, by_hand in measured(url, kind, options.letters, options.rounds):
                ratio = statistics.median(o / h for o, h in zip(ours, by_hand, strict=True))
                one, other = map(statistics.median, (ours, by_hand))
                print(f"{kind:8} {what:8} {one:10,.0f} {other:10,.0f} {ratio:6.2f}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process: {peak:.0f} MiB")


@contextlib.contextmanager
def server(kind: str) -> Iterator[str]:
    if kind == "redis":
        with EmbeddedServer(options=("--appendonly", "no")) as embedded:
            yield embedded.broker_url
        return
    from tests.servers import RabbitServer

    rabbit = RabbitServer()
    rabbit.start()
    try:
        yield rabbit.url(rabbit.add_vhost())
    finally:
        rabbit.stop()


def make_app(url: str, kind: str) -> Celery:
    app = Celery("letters", broker=url, set_as_current=False)
    arguments = {} if kind == "redis" else {"x-queue-type": kind}
    app.conf.update(
        task_default_queue="work",
        task_queues=[Queue("work", queue_arguments=arguments)],
        task_ignore_result=True,
        resilience_dead_letter_queue=LETTERS,
        broker_connection_retry_on_startup=True,
    )
    install(app)

    @app.task(name="shop.charge", shared=False)
    def charge(order: int, amount: dict[str, Any]) -> None:
        raise ValueError(f"order {order}: no such account")

    return app


def measured(
    url: str, kind: str, number: int, rounds: int
) -> Iterator[tuple[str, list[float], list[float]]]:
    """What was done, and how many a second of the rounds: ours, and by hand."""
    app = make_app(url, kind)
    speeds: dict[str, tuple[list[float], list[float]]] = {
        what: ([], []) for what in ("list", "groups", "replay")
    }
    with app.producer_pool.acquire() as producer:
        for n in range(number):
            amount = {"currency": "EUR", "cents": n}
            app.send_task("shop.charge", (n, amount), producer=producer)
    letters = DeadLetters(app, ["work"])
    looks = {
        "list": lambda: sum(1 for _ in letters.list()),
        "groups": lambda: sum(group.count for group in letters.groups()),
    }
    for turn in range(rounds):
        fail_all(app, url, kind, number)
        for what, look in looks.items():
            ours, by_hand = speeds[what]
            sides = [(ours, look), (by_hand, lambda: get_and_give_back(app))]
            for speed, measure in sides[:: 1 if turn % 2 else -1]:
                speed.append(per_second(measure, number))
        ours, by_hand = speeds["replay"]
        by_hand.append(per_second(lambda: move(app, LETTERS, "moved"), number))
        move(app, "moved", LETTERS)
        ours.append(per_second(lambda: sum(1 for _ in letters.replay("all")), number))
        say(f"{kind}: round {turn + 1} of {rounds}")
    yield from ((what, *each) for what, each in speeds.items())


def per_second(measure: Any, number: int) -> float:
    began = time.perf_counter()
    done = measure()
    if done != number:
        raise SystemExit(f"{done} of {number}")
    return number / (time.perf_counter() - began)


def fail_all(app: Celery, url: str, kind: str, number: int) -> None:
    """Let a worker fail what lies in the work queue, until so many letters are there."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "LETTERS_URL": url, "LETTERS_KIND": kind,
                   "C_FORCE_ROOT": "1"}  # fmt: skip
    command = [sys.executable, "-m", "celery", "-A", "letters:app", "worker", "-c", "2"]
    command += ["-l", "CRITICAL", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = subprocess.Popen(
        leashed(command), env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 900
        letters = DeadLetters(app, ["work"])
        while letters.count()[LETTERS] < number:
            if time.monotonic() > end:
                raise SystemExit(f"{letters.count()} of {number} letters in 900 s")
            time.sleep(1)
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(60)


def get_and_give_back(app: Celery) -> int:
    """Every letter's body, by hand: get all, then close the channel, which gives them back."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        number = 0
        while (message := channel.basic_get(LETTERS)) is not None:
            assert message.body is not None
            number += 1
        return number


def move(app: Celery, source: str, target: str) -> int:
    """Every message of *source* to *target*, by hand: get, publish and confirm, acknowledge."""
    with app.connection_for_write() as connection:
        return moved(connection, app, source, target)


def moved(connection: Connection, app: Celery, source: str, target: str) -> int:
    connection.transport_options = {**connection.transport_options, "confirm_publish": True}
    arguments = app.conf.task_queues[0].queue_arguments or None
    with connection.Producer() as producer:
        queue = Queue(target, queue_arguments=arguments)
        queue(producer.channel).declare()
        number = 0
        taking = connection.default_channel
        while (message := taking.basic_get(source)) is not None:
            message = message if hasattr(message, "ack") else taking.message_to_python(message)
            properties = {k: v for k, v in message.properties.items() if k in KEPT}
            producer.publish(
                message.body, routing_key=target, exchange="", serializer=None,
                content_type=message.content_type, content_encoding=message.content_encoding,
                headers=message.headers, **properties,
            )  # fmt: skip
            message.ack()
            number += 1
        return number


if "LETTERS_URL" in os.environ:
    app = make_app(os.environ["LETTERS_URL"], os.environ["LETTERS_KIND"])

if __name__ == "__main__":
    main()
