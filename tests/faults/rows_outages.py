"""Rows 7, 8 and 13: the broker, the result store or the dead-letter queue is not to be had."""

from __future__ import annotations

from typing import Any

from kombu import Queue

from tests.faults.row import EVERYWHERE, RABBITS, REDIS, row
from tests.faults.scene import Scene

_POOLS = ("prefork", "threads", "gevent")


def _outage(scene: Scene) -> float:
    return 60.0 if scene.full else 5.0


def _unreachable(scene: Scene, name: str, ends: str, starts: int) -> None:
    """Bodies that fail while nobody can be told."""
    scene.worker(concurrency=4)
    gate = scene.directory / "gate"
    for _ in range(4):
        if name == "gated":
            scene.send("gated", str(gate), "fail", ends=ends, starts=starts)
        else:
            scene.send(name, str(gate), ends=ends, starts=starts)
    for _ in range(4):
        scene.send("good")
    scene.wait(lambda: sum(n >= 1 for n in scene.starts().values()) >= 4)
    scene.cut()
    gate.touch()
    scene.pause(_outage(scene))
    scene.door.mend()


@row(
    "7-retry",
    "broker unreachable at the re-enqueue, for 5 s (60 s with --full)",
    pools=_POOLS,
    doubles=1,
    window=True,
    forks=True,
    patience=90,
    ci=("redis/prefork", "rabbitmq-classic/gevent"),
)
def at_the_retry(scene: Scene) -> None:
    _unreachable(scene, "gated_once", "result", 2)


@row(
    "7-letter",
    "broker unreachable at the dead-lettering, for 5 s (60 s with --full)",
    pools=_POOLS,
    doubles=1,
    window=True,
    forks=True,
    patience=90,
    ci=("redis/threads",),
)
def at_the_letter(scene: Scene) -> None:
    _unreachable(scene, "gated", "letter", 1)


def _killed(scene: Scene, fsync: str = "", options: dict[str, Any] | None = None) -> None:
    if fsync:
        scene.redis().config_set("appendfsync", fsync)
    for number in range(60):
        if number % 3 == 0:
            scene.send("flaky", 2, 0.1, starts=3)
        elif number % 3 == 1:
            scene.send("hopeless", ends="letter", starts=4)
        else:
            scene.send("good", 0.1)
    scene.broker_holds(60)
    scene.worker(broker_options=options)
    scene.wait(lambda: sum(scene.starts().values()) >= 12)
    scene.kill_broker()
    scene.pause(_outage(scene) if scene.full else 1.0)
    scene.start_broker()


@row(
    "7-everysec",
    "Redis killed (-9) and restarted, appendfsync everysec",
    brokers=REDIS,
    pools=EVERYWHERE,
    doubles=1,
    window=True,
    patience=90,
    ci=("redis/prefork",),
)
def everysec(scene: Scene) -> None:
    _killed(scene, "everysec")


@row(
    "7-always",
    "Redis killed (-9) and restarted, appendfsync always",
    brokers=REDIS,
    pools=("prefork", "threads"),
    doubles=1,
    window=True,
    patience=90,
)
def always(scene: Scene) -> None:
    _killed(scene, "always")


@row(
    "7-rabbitmq",
    "RabbitMQ killed (-9) and restarted, durable queues",
    brokers=RABBITS,
    pools=("prefork", "threads", "gevent"),
    ci=("rabbitmq-quorum/prefork",),
    doubles=1,
    forks=True,
    patience=120,
)
def rabbitmq(scene: Scene) -> None:
    _killed(scene)


@row(
    "7-confirms",
    "RabbitMQ killed (-9) and restarted, with the app's own confirms",
    brokers=RABBITS,
    doubles=1,
    forks=True,
    patience=120,
)
def confirms(scene: Scene) -> None:
    _killed(scene, options={"confirm_publish": True})


@row(
    "7-alarm",
    "RabbitMQ short of memory at the retry and at the letter, for 5 s (60 s with --full)",
    brokers=RABBITS,
    pools=_POOLS,
    patience=90,
)
def alarm(scene: Scene) -> None:
    gate, rabbit = scene.directory / "gate", scene.servers.rabbitmq
    scene.worker(concurrency=4)
    for _ in range(2):
        scene.send("gated_once", str(gate), starts=2)
        scene.send("gated", str(gate), "fail", ends="letter")
    scene.wait(lambda: len(list(scene.lines("start"))) == 4)
    rabbit.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        gate.touch()
        scene.pause(_outage(scene))
    finally:
        rabbit.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")


# The result store


def _without_results(scene: Scene) -> None:
    for _ in range(5):
        scene.send("good", by_record=True)
        scene.send("flaky", 1, starts=2, by_record=True)
        scene.send("refuses", ends="letter")
        scene.send("hopeless", ends="letter", starts=4)


@row(
    "8-down",
    "result store down",
    pools=EVERYWHERE,
    patience=120,
    ci=("redis/prefork",),
)
def results_down(scene: Scene) -> None:
    scene.worker()
    scene.results_door.cut()
    _without_results(scene)
    scene.wait(scene.places.are_final, scene.patience)
    scene.results_door.mend()


@row("8-slow", "result store slow (0.3 s each way)", pools=("prefork", "threads"))
def results_slow(scene: Scene) -> None:
    scene.results_door.slow = 0.3
    scene.worker()
    _without_results(scene)


@row(
    "8-refusing",
    "result store refuses to write (out of memory)",
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def results_refuse(scene: Scene) -> None:
    scene.worker()
    client = scene.results_redis()
    client.config_set("maxmemory", 1)
    try:
        _without_results(scene)
        scene.wait(scene.places.are_final, scene.patience)
    finally:
        client.config_set("maxmemory", 0)


@row(
    "8-chain",
    "the chain's next task cannot be published after the success; then a replay",
    # RabbitMQ delivers the message again when the connection is lost: the body runs again there.
    brokers=REDIS,
    pools=("prefork", "threads"),
    patience=120,
    ci=("redis/prefork",),
)
def chain_unpublished(scene: Scene) -> None:
    from celery import chain

    app, gate = scene.client.app, scene.directory / "gate"
    scene.worker(concurrency=4)
    firsts = []
    for _ in range(3):
        first = scene.number("gated", ends="result letter")
        second = scene.number("follows")
        chain(
            app.signature("tests.faults.app.gated", (first, str(gate)), task_id=first),
            app.signature("tests.faults.app.follows", (second,), task_id=second),
        ).apply_async(queue="work")
        firsts.append(first)
    scene.wait(lambda: len(list(scene.lines("start"))) == 3)
    scene.cut()
    gate.touch()
    scene.wait(lambda: len(list(scene.lines("end"))) >= 3)
    # Celery tries for some seconds to publish what follows, some versions three times; only then
    # it is our turn.
    scene.wait(
        lambda: scene.stock or len(list(scene.lines("failure"))) == 3, 60, message="it gives up"
    )
    scene.door.mend()
    if scene.stock:
        return
    scene.wait(lambda: scene.client.count("dead_letter") == 3, 60, message="3 letters")
    reasons = {str(letter.reason) for letter in scene.client.letters()}
    scene.expect(reasons == {"chain"}, f"the letters say {reasons}")
    replay(scene)
    for first in firsts:
        scene.tasks[first].ends = ("result",)
        scene.tasks[first].by_record = True


def replay(scene: Scene) -> None:
    """Replay every letter, as ``dlq replay --all`` does."""
    from celery_resilience.operate.dead_letters import DeadLetters

    with DeadLetters(scene.client.app, ["dead_letter"]) as letters:
        results = [replayed.result.value for replayed in letters.replay("all")]
    scene.expect(set(results) == {"published"}, f"the replay said {results}")


# The dead-letter queue


def _no_letters(scene: Scene) -> list[str]:
    for _ in range(6):
        scene.send("refuses", ends="letter")
    return [scene.send("flaky", starts=2) for _ in range(3)]


def _goes_on_by_itself(scene: Scene, worker: Any) -> None:
    said = "settlement failed"
    scene.wait(lambda: said in worker.log(), 20, message=f"the log says {said!r}")
    scene.expect(scene.client.count("dead_letter") == 0, "there were letters before it was mended")


@row(
    "13-full",
    "the dead-letter queue is full",
    brokers=RABBITS,
    pools=("prefork", "threads"),
    ci=("rabbitmq-classic/prefork",),
)
def full(scene: Scene) -> None:
    # A limit that is lifted again, not a queue that is deleted: RabbitMQ confirms what was on its
    # way into a queue that is being deleted, and it is gone with it.
    rabbit, vhost = scene.servers.rabbitmq, _vhost(scene)
    _declare(scene, "dead_letter", {})
    rabbit.evaluate(
        f'rabbit_policy:set(<<"{vhost}">>, <<"full">>, <<"^dead_letter$">>, [{{<<"max-length">>,'
        ' 1}, {<<"overflow">>, <<"reject-publish">>}], 0, <<"queues">>, <<"tests">>).'
    )
    scene.client.put("dead_letter", b"it fills the queue")
    worker = scene.worker()
    _no_letters(scene)
    scene.wait(lambda: "settlement failed" in worker.log(), 20, message="the log says so")
    scene.expect(scene.client.count("dead_letter") == 1, "it took one more than its limit")
    with scene.client.app.connection_for_write() as connection:
        connection.default_channel.queue_purge("dead_letter")  # of what has filled it
    rabbit.evaluate(f'rabbit_policy:delete(<<"{vhost}">>, <<"full">>, <<"tests">>).')


@row(
    "13-denied",
    "the worker may not declare the dead-letter queue",
    brokers=RABBITS,
    pools=("prefork", "threads"),
    ci=("rabbitmq-classic/prefork",),
)
def denied(scene: Scene) -> None:
    _permit(scene, configure="^(?!dead).*")  # a worker makes the queue when it connects
    worker = scene.worker()
    try:
        _no_letters(scene)
        _goes_on_by_itself(scene, worker)
    finally:
        _permit(scene)


@row(
    "13-unwritable",
    "the worker may not publish, neither letters nor retries",
    brokers=RABBITS,
    pools=("prefork", "threads"),
)
def unwritable(scene: Scene) -> None:
    gate = scene.directory / "gate"
    worker = scene.worker(concurrency=4)
    for _ in range(2):
        scene.send("gated", str(gate), "fail", ends="letter")
        scene.send("gated_once", str(gate), starts=2)
    scene.wait(lambda: len(list(scene.lines("start"))) == 4)
    _permit(scene, write="^(?!amq.default).*")
    try:
        gate.touch()
        _goes_on_by_itself(scene, worker)
    finally:
        _permit(scene)


@row(
    "13-deleted",
    "the queue is deleted while its tasks run",
    brokers=RABBITS,
    pools=_POOLS,
    ci=("rabbitmq-classic/threads",),
)
def deleted(scene: Scene) -> None:
    # A worker that reconnects makes its queue again, and what is retried goes on there; before
    # that it is a letter.
    gate = scene.directory / "gate"
    worker = scene.worker(concurrency=4)
    for _ in range(2):
        scene.send("gated", str(gate), "fail", ends="letter")
        scene.send("gated_once", str(gate), ends="letter result", starts=2)
    scene.wait(lambda: len(list(scene.lines("start"))) == 4)
    with scene.client.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("work")
    scene.wait(lambda: "Connection to broker lost" in worker.log(), message="it is told")
    gate.touch()


def _permit(scene: Scene, configure: str = ".*", write: str = ".*") -> None:
    scene.servers.rabbitmq.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{_vhost(scene)}">>,'
        f' <<"{configure}">>, <<"{write}">>, <<".*">>, <<"tests">>).'
    )


@row(
    "13-type",
    "the dead-letter queue's key in Redis is no list",
    brokers=REDIS,
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def wrong_type(scene: Scene) -> None:
    client = scene.redis()
    client.set("dead_letter", "somebody's")
    worker = scene.worker()
    _no_letters(scene)
    scene.wait(lambda: "settlement failed" in worker.log(), 20, message="the log says so")
    client.delete("dead_letter")
    scene.wait(scene.places.are_final, scene.patience)
    scene.expect(worker.log().count("settlement failed") == 1, "the log said it more than once")


@row(
    "13-memory",
    "Redis is out of memory (maxmemory, noeviction)",
    brokers=REDIS,
    pools=("prefork", "threads"),
    ci=("redis/threads",),
)
def out_of_memory(scene: Scene) -> None:
    client = scene.redis()
    gate = scene.directory / "gate"
    scene.worker()
    scene.send("gated", str(gate), "fail", ends="letter")
    scene.send("gated_once", str(gate), starts=2)
    scene.wait(lambda: len(list(scene.lines("start"))) == 2)
    client.config_set("maxmemory", 1)
    try:
        gate.touch()
        # A copy takes the place of its original: it needs no room.
        scene.wait(scene.places.are_final, scene.patience)
    finally:
        client.config_set("maxmemory", 0)


def _vhost(scene: Scene) -> str:
    return str(scene.client.app.conf.broker_url.rsplit("/", 1)[1])


def _declare(scene: Scene, name: str, arguments: dict[str, Any]) -> None:
    with scene.client.app.connection_for_write() as connection:
        Queue(name, exchange=None, queue_arguments=arguments).bind(
            connection.default_channel
        ).queue_declare()
