"""Rows 18: a server accepts connections, or has them, and never answers."""

from __future__ import annotations

from tests.faults.row import OURS, RABBITS, REDIS, row
from tests.faults.scene import Scene


def _ended(scene: Scene, numbers: list[str]) -> int:
    ended = {rest[0] for rest in scene.lines("end")}
    return len(ended.intersection(numbers))


@row(
    "18-results",
    "the result store hangs: tasks without results go on, retries come due, letters are written",
    brokers=("redis", "kombu-redis", "rabbitmq-classic"),
    patience=60,
    ci=("rabbitmq-classic/prefork",),
)
def results_hang(scene: Scene) -> None:
    worker = scene.worker(concurrency=4)
    later = [scene.send("later", 2.0, starts=2, by_record=True) for _ in range(2)]
    scene.wait(lambda: list(scene.places.states().values()).count("RETRY") == 2)
    scene.results_door.jam()
    scene.send("poison_without_retries", "kill", ends="letter")
    scene.send("rejects", ends="letter")
    quiet = [scene.send("quiet", 0.05, by_record=True) for _ in range(20)]
    scene.wait(lambda: _ended(scene, quiet) == 20, 40, "20 tasks without results have run")
    scene.wait(lambda: _ended(scene, later) == 2, 40, "retries that came due have run")
    scene.wait(lambda: scene.client.count("dead_letter") == 2, 40, "2 letters are written")
    scene.expect(worker.log().count("no answer for") == 1, "the log says once what hangs")
    scene.results_door.mend()


#: RabbitMQ keeps the queue of remote control locked until it has missed the old connection itself,
#: which ends Celery's worker; its supervisor would start it again.
_HEARTBEAT = {"broker_heartbeat": 10, "worker_enable_remote_control": False}

# One connection of a worker's goes half open; what is sent on it tells which


def _half_open(scene: Scene, *sent: bytes) -> None:
    scene.deaths += 1
    scene.wait(lambda: scene.door.jam_those(*sent), message="there is such a connection")


def _traffic(scene: Scene) -> None:
    for _ in range(10):
        scene.send("good", 0.05)
        scene.send("flaky", 1, starts=2)
    for _ in range(3):
        scene.send("refuses", ends="letter")


def _first_of_each(scene: Scene) -> None:
    """Let every connection of the worker's be open."""
    scene.send("flaky", 1, starts=2)
    scene.send("refuses", ends="letter")
    scene.wait(scene.places.are_final, message="the first of each")


@row(
    "18-settlement",
    "the connection of the settlements goes half open",
    brokers=REDIS,
    pools=("prefork", "threads", "solo", "gevent"),
    patience=40,
    ci=("redis/threads",),
)
def settlement(scene: Scene) -> None:
    worker = scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"dead_letter")
    _traffic(scene)
    scene.wait(scene.places.are_final, scene.patience)
    scene.expect("settlement failed (Timeout" in worker.log(), "no line says what hangs")


@row(
    "18-lease",
    "the connection of the lease goes half open; another worker waits for its end",
    brokers=REDIS,
    pools=("prefork", "threads", "gevent", "solo"),
    patience=120,
)
def lease(scene: Scene) -> None:
    worker = scene.worker()
    _first_of_each(scene)
    scene.send("slow", 60.0)
    scene.wait(lambda: len(list(scene.lines("start"))) == 4)
    _half_open(scene, b"celery_resilience:turn")
    scene.worker()
    _traffic(scene)
    scene.wait(scene.places.are_final, scene.patience)
    scene.expect(
        "due retries can't be published for now: Timeout" in worker.log(), "no line says so"
    )


@row(
    "18-consumer",
    "the connection that messages come in at goes half open",
    brokers=REDIS,
    pools=("prefork", "threads", "gevent"),
    doubles=1,
    window=True,
    patience=90,
)
def consumer(scene: Scene) -> None:
    scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"BRPOP", b"TRACKING")
    _traffic(scene)


@row(
    "18-wakeup",
    "the connection on which Redis tells of new messages goes half open",
    brokers=OURS,
    patience=40,
)
def wakeup(scene: Scene) -> None:
    scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"CLIENT\r\n$2\r\nID")
    _traffic(scene)


@row("18-remote", "the connection of remote control goes half open", brokers=REDIS, patience=40)
def remote(scene: Scene) -> None:
    scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"PSUBSCRIBE")
    _traffic(scene)


@row(
    "18-confirms",
    "the connection that retries and letters are published on goes half open",
    brokers=RABBITS,
    pools=("prefork", "threads", "gevent"),
    # RabbitMQ may have them: whoever is told so too late publishes them again.
    doubles=1,
    forks=True,
    patience=120,
)
def confirms(scene: Scene) -> None:
    worker = scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"\x00\x55\x00\x0a\x00")  # confirm.select
    good = [scene.send("good", 0.05) for _ in range(10)]
    _traffic(scene)
    if scene.cell.pool != "gevent":
        scene.wait(lambda: _ended(scene, good) == 10, 20, "the others go on")
    scene.wait(scene.places.are_final, scene.patience)
    scene.expect("no confirm within" in worker.log(), "no line says what hangs")


@row(
    "18-declaring",
    "the connection that retries are published on goes half open while what they need is made",
    brokers=RABBITS,
    pools=("prefork", "threads", "gevent"),
    doubles=1,
    forks=True,
    patience=60,
    ci=("rabbitmq-classic/gevent",),
)
def declaring(scene: Scene) -> None:
    scene.worker(concurrency=4)
    _first_of_each(scene)
    _half_open(scene, b"\x00\x55\x00\x0a\x00")  # confirm.select
    # No retry of this priority has waited before: its levels are to be made.
    scene.send("later", 1.0, starts=2, priority=5)
    good = [scene.send("good", 0.05) for _ in range(10)]
    _traffic(scene)
    scene.wait(lambda: _ended(scene, good) == 10, 40, "the others go on")


@row(
    "18-resolver",
    "the name server hangs when the settlements' connection is opened; several want it",
    brokers=("rabbitmq-classic",),
    pools=("prefork", "threads", "gevent"),
    patience=40,
    ci=("rabbitmq-classic/prefork",),
)
def resolver(scene: Scene) -> None:
    silence = scene.directory / "silence"
    # Remote control, gossip and events would open connections, and Celery waits for the name.
    conf = {"worker_enable_remote_control": False}
    env = {"SILENCE": str(silence)}
    worker = scene.worker(concurrency=4, conf=conf, env=env, host="broker.test")
    silence.touch()
    for _ in range(8):
        scene.send("flaky", 1, starts=2)
    good = [scene.send("good", 0.05) for _ in range(10)]
    scene.wait(lambda: _ended(scene, good) == 10, 25, "the others go on")
    line = "RabbitMQ, to which a connection is opened, has not answered for"
    scene.wait(lambda: line in worker.log(), message="a line says what hangs")
    silence.unlink()


@row(
    "18-publishing",
    "bodies publish while the broker hangs, with Celery's options of 1 s",
    brokers=("redis", "rabbitmq-classic"),
    doubles=1,
    window=True,
    forks=True,
    patience=60,
    ci=("redis/prefork",),
)
def publishing(scene: Scene) -> None:
    gate = scene.directory / "gate"
    scene.worker(
        concurrency=4,
        conf={**_HEARTBEAT, "broker_connection_timeout": 1,
              "task_publish_retry_policy": {"max_retries": 1}},
        broker_options={"socket_timeout": 1} if scene.on_redis else {"read_timeout": 1},
    )  # fmt: skip
    _first_of_each(scene)
    # What was sent in vain arrives all the same when the door is mended.
    others = [scene.number("good", starts=50) for _ in range(2)]
    bodies = [scene.send("publishes", other, str(gate), starts=100) for other in others]
    scene.wait(lambda: all(map(scene.started, bodies)), message="they have begun")
    scene.deaths += 1
    scene.door.jam()
    gate.touch()
    refused = lambda: {number for number, *_ in scene.lines("refused")}  # noqa: E731
    scene.wait(lambda: refused() == {*bodies}, 20, "they are told so in time")
    scene.pause(10)
    scene.door.mend()


@row(
    "18-delivery",
    "the connection that messages come in at goes half open, with a heartbeat of 10 s",
    brokers=RABBITS,
    pools=("prefork", "threads"),
    doubles=1,
    forks=True,
    patience=120,
)
def delivery(scene: Scene) -> None:
    scene.worker(concurrency=4, conf=_HEARTBEAT)
    _first_of_each(scene)
    _half_open(scene, b"\x00\x3c\x00\x14")  # basic.consume
    _traffic(scene)


@row(
    "18-frame",
    "the connection that messages come in at goes half open in the midst of one, heartbeat 10 s",
    brokers=RABBITS,
    pools=("prefork", "threads", "gevent"),
    doubles=1,
    forks=True,
    patience=90,
)
def frame(scene: Scene) -> None:
    scene.worker(concurrency=4, conf=_HEARTBEAT)
    _first_of_each(scene)
    scene.deaths += 1
    scene.door.jam_within(b"in the midst of it")
    scene.send("good", 0.05, headers={"note": "in the midst of it"})
    _traffic(scene)
    scene.wait(scene.places.are_final, scene.patience)


@row(
    "18-broker",
    "the broker hangs for 25 s: no connection passes anything",
    pools=("prefork", "threads"),
    doubles=1,
    window=True,
    forks=True,
    patience=150,
)
def broker_hangs(scene: Scene) -> None:
    scene.worker(concurrency=4, conf=_HEARTBEAT)
    _first_of_each(scene)
    _traffic(scene)
    scene.deaths += 1
    scene.door.jam()
    scene.pause(25)
    scene.door.mend()


@row(
    "18-single",
    "max_connections: 1",
    brokers=REDIS,
    ci=("redis/prefork",),
)
def single(scene: Scene) -> None:
    scene.worker(concurrency=4, broker_options={"max_connections": 1})
    _traffic(scene)
