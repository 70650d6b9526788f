"""Where a row of the matrix is played: servers, doors to them, workers, numbered tasks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kombu import Queue

from celery_resilience.testing.server import EmbeddedServer
from tests import rabbitmq4
from tests.client import Client
from tests.faults.count import Count, Places
from tests.faults.proxy import Door
from tests.faults.row import Cell
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

__all__ = ["Scene", "Servers", "Task", "alive", "play"]

APP = "tests.faults.app"
_DATABASES = 64


class Servers:
    """The servers of a run, each started when it is first asked for, and up whenever asked.

    *rabbit* gives a RabbitMQ that somebody else stops; else one of *version* is started.
    """

    def __init__(self, rabbit: Callable[[], RabbitServer] | None = None, version: str = "") -> None:
        self._stack = contextlib.ExitStack()
        self._rabbit = rabbit
        self._version = version
        self._numbers = itertools.cycle(range(_DATABASES))

    @cached_property
    def _redis(self) -> EmbeddedServer:
        return self._stack.enter_context(_redis())

    @cached_property
    def _results(self) -> EmbeddedServer:
        return self._stack.enter_context(_redis())

    @cached_property
    def _rabbitmq(self) -> RabbitServer:
        if self._rabbit is not None:
            return self._rabbit()
        server = rabbitmq4.server(self._version)
        self._stack.callback(server.stop)
        return server

    @property
    def redis(self) -> EmbeddedServer:
        """The messages' Redis."""
        self._redis.start()
        return self._redis

    @property
    def results(self) -> EmbeddedServer:
        """The results' Redis, a server of its own: either may be away while the other is there."""
        self._results.start()
        return self._results

    @property
    def rabbitmq(self) -> RabbitServer:
        self._rabbitmq.start()
        return self._rabbitmq

    def database(self) -> int:
        """The number of a database that nobody has used lately."""
        return next(self._numbers)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _redis() -> EmbeddedServer:
    # everysec may answer before it writes while an fsync goes on; "no" writes first and leaves
    # the fsync to the kernel. Rows that are about it set their own.
    return EmbeddedServer(port=0, options=["--databases", str(_DATABASES), "--appendfsync", "no"])


@dataclass
class Task:
    """One numbered task and what is expected of it."""

    number: str
    name: str
    #: Where it may end: ``result``, ``waiting``, ``letter``, ``dropped``.
    ends: tuple[str, ...]
    #: How often its body may start.
    starts: int
    #: What its letter's reason may be; empty: anything.
    reasons: tuple[str, ...] = ()
    #: The record, not the result store, tells whether it succeeded.
    by_record: bool = False


@dataclass
class Scene:
    """One cell that is being played."""

    cell: Cell
    servers: Servers
    directory: Path
    #: Play it with stock Celery instead: ``early`` or ``late`` acknowledgement.
    stock: str = ""
    #: The long version of a row: a minute's outage where CI takes five seconds.
    full: bool = False
    tasks: dict[str, Task] = field(default_factory=dict)
    #: What was found wrong beside the count.
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.workers: list[Worker] = []
        self._supervised: list[Worker] = []
        #: How many workers have died, by our hand or by their task's.
        self.deaths = 0
        #: How often more than it asked for each body may start.
        self.doubles = self.cell.row.doubles
        self._numbers = itertools.count(1)
        results, number = self.servers.results, self.servers.database()
        _flush(results, number)
        self.results_door = self._door(results.port)
        backend = f"redis://127.0.0.1:{{}}/{self.servers.database()}"
        queue_type, redis_url = "classic", None
        #: RabbitMQ's virtual host.
        self.vhost = ""
        if self.on_redis:
            server = self.servers.redis
            _flush(server, number)
            port, address = server.port, f"redis://127.0.0.1:{{}}/{number}"
            redis_url = address.format(port)
        else:
            rabbit = self.servers.rabbitmq
            vhost = self.vhost = rabbit.add_vhost()
            self._stack.callback(self._delete, vhost)
            port, address = rabbit.port, f"amqp://guest:guest@127.0.0.1:{{}}/{vhost}"
            queue_type = self.cell.broker.removeprefix("rabbitmq-")
        self.door = self._door(port)

        def broker(door: int, results_door: int) -> Broker:
            return Broker(
                self.cell.broker, address.format(door), backend.format(results_door), queue_type,
                redis_url,
            )  # fmt: skip

        self._theirs = theirs = broker(self.door.port, self.results_door.port)
        if self.cell.broker == "resilient-redis":
            self._theirs = replace(theirs, broker_url=f"resilient-{theirs.broker_url}")
        self.client = Client(broker(port, results.port), self.directory / "record")
        self._stack.callback(self.client.close)
        self.client.app.conf.update(
            task_default_queue="work",
            task_queues=[Queue("work", queue_arguments={"x-queue-type": queue_type})],
        )
        _flush(results, int(backend.rsplit("/", 1)[1]))
        self.places = Places(self)

    @property
    def on_redis(self) -> bool:
        return self.cell.broker.endswith("redis")

    @property
    def patience(self) -> float:
        # Stock Celery is not waited for as long: what it has lost never comes.
        return min(20.0, self.cell.row.patience) if self.stock else self.cell.row.patience

    # Servers

    def kill_broker(self) -> None:
        """End the broker as ``kill -9`` does."""
        self.deaths += 1
        (self.servers._redis if self.on_redis else self.servers._rabbitmq).kill()

    def cut(self) -> None:
        """Cut the workers off from the broker, until ``door.mend``."""
        self.deaths += 1
        self.door.cut()

    def start_broker(self) -> None:
        """Start it again, on the data it had."""
        (self.servers._redis if self.on_redis else self.servers._rabbitmq).start()

    def redis(self) -> Any:
        """A redis-py client of the broker."""
        import redis

        client = redis.Redis.from_url(self._theirs.redis_url)
        self._stack.callback(client.close)
        return client

    def results_redis(self) -> Any:
        """A redis-py client of the result store."""
        import redis

        client = redis.Redis.from_url(self.client.app.conf.result_backend)
        self._stack.callback(client.close)
        return client

    # Workers

    def worker(
        self,
        *,
        concurrency: int = 2,
        arguments: Sequence[str] = (),
        conf: dict[str, Any] | None = None,
        broker_options: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        supervised: bool = False,
        pool: str = "",
        stock: str | None = None,
        host: str = "",
    ) -> Worker:
        """A worker that consumes; *supervised*: it is started again whenever it has ended.

        It knows its broker by the name *host*, if one is given.
        """
        stock = self.stock if stock is None else stock
        options = {"STOCK": stock, "CONF": json.dumps(conf or {}), **self.client.env, **(env or {})}
        options["BROKER_OPTIONS"] = json.dumps(broker_options or {})
        if stock:  # it would refuse our flags
            arguments = [word for word in arguments if "dead-letter" not in word]
        broker = self._theirs
        if host:
            broker = replace(broker, broker_url=broker.broker_url.replace("127.0.0.1", host))
        if stock:
            url = broker.broker_url.removeprefix("resilient-")
            broker = replace(broker, broker_url=url)
        worker = Worker(
            APP, broker, pool=pool or self.cell.pool, concurrency=concurrency,
            arguments=arguments, env=options,
            log=self.directory / f"worker-{len(self.workers) + 1}.log",
        )  # fmt: skip
        self._stack.enter_context(worker)
        self.workers.append(worker)
        if supervised:
            self._supervised.append(worker)
        return worker

    def kill(self, worker: Worker, main_alone: bool = False) -> None:
        """End *worker* as a power cut does, or its main process as the OOM killer does."""
        self.deaths += 1
        if main_alone:
            worker.kill_main()
        else:
            worker.kill()

    def supervise(self) -> None:
        """Start again those of the supervised workers that have ended."""
        for worker in self._supervised:
            process = worker._process
            if process is not None and process.poll() is not None:
                self.deaths += 1
                worker.start()

    # Tasks

    def send(
        self,
        name: str,
        *args: Any,
        ends: str = "result",
        starts: int = 1,
        reasons: str = "",
        by_record: bool = False,
        **options: Any,
    ) -> str:
        """Send a task whose first argument is its number; the number, which is its id too.

        *ends* and *reasons* list what may become of it, separated by blanks.
        """
        number = self.number(name, ends=ends, starts=starts, reasons=reasons, by_record=by_record)
        self.client.app.send_task(
            f"{APP}.{name}", (number, *args), task_id=number, queue="work", **options
        )
        return number

    def number(
        self, name: str, ends: str = "result", starts: int = 1, reasons: str = "",
        by_record: bool = False,
    ) -> str:  # fmt: skip
        """A new number for a task that is sent in another way."""
        number = f"{self.cell.row.name}-{next(self._numbers):04d}"
        self.tasks[number] = Task(
            number, name, tuple(ends.split()), starts, tuple(reasons.split()), by_record
        )
        return number

    def started(self, number: str) -> int:
        """How often its body has started."""
        return self.starts().get(number, 0)

    def lines(self, word: str) -> Iterator[list[str]]:
        """The lines of the record that begin with *word*, without it."""
        for line in self.client.lines():
            first, *rest = line.split() or [""]
            if first == word:
                yield rest

    def starts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for number, *_ in self.lines("start"):
            found[number] = found.get(number, 0) + 1
        return found

    # Waiting and counting

    def wait(self, predicate: Callable[[], Any], timeout: float = 30, message: str = "") -> Any:
        """Wait for *predicate*, and meanwhile see to the supervised workers."""

        def look() -> Any:
            self.supervise()
            return predicate()

        return eventually(look, timeout, message=message)

    def pause(self, seconds: float) -> None:
        """Let an outage last; nothing is decided by its length."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.supervise()
            time.sleep(0.05)

    def broker_holds(self, count: int) -> None:
        """Wait until the work queue holds *count* messages: from then on they count."""
        self.wait(lambda: self.client.count("work") == count, message=f"{count} messages lie there")

    def expect(self, holds: object, complaint: str) -> None:
        """Note *complaint* unless it *holds*; a stock worker is only watched."""
        if not holds and not self.stock:
            self.complaints.append(complaint)

    def finish(self) -> Count:
        """Wait until every task is where it may end, end the workers, count."""
        began = time.monotonic()
        with contextlib.suppress(AssertionError):
            self.wait(self.places.are_final, self.patience)
        waited = time.monotonic() - began
        self._supervised.clear()
        for worker in self.workers:
            self._end(worker)
        return self.places.count(waited)

    def _end(self, worker: Worker) -> None:
        process = worker._process
        if process is None or process.poll() is not None:
            return
        worker.send(signal.SIGCONT)
        try:
            worker.terminate(timeout=20)
        except AssertionError:
            self.complaints.append("a warm shutdown did not end within 20 s")
            worker.kill()

    def _door(self, port: int | None) -> Door:
        assert port is not None
        door = Door(port)
        self._stack.callback(door.close)
        return door

    def _delete(self, vhost: str) -> None:
        self.servers.rabbitmq.delete_vhost(vhost)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def play(
    cell: Cell, servers: Servers, directory: Path, stock: str = "", full: bool = False
) -> Count:
    """Play *cell* and count."""
    with Scene(cell, servers, directory, stock, full) as scene:
        try:
            cell.row.run(scene)
        except AssertionError as exc:
            if not stock:
                scene.complaints.append(str(exc))
        return scene.finish()


def _flush(server: EmbeddedServer, number: int) -> None:
    import redis

    with redis.Redis.from_url(f"redis://127.0.0.1:{server.port}/{number}") as client:
        client.flushdb()


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
