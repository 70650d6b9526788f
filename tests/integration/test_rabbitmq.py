"""What RabbitMQ keeps, drops and counts, and what that must not cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from kombu import Queue

from celery_resilience import install
from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.rabbitmq import upkeep
from celery_resilience.brokers.rabbitmq.broker import AmqpBroker
from celery_resilience.brokers.rabbitmq.browse import QueueBrowser
from celery_resilience.brokers.rabbitmq.delay import level_name
from celery_resilience.brokers.rabbitmq.queues import QueueFacts
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import ASTRAY, DUE
from celery_resilience.messages.history import History
from celery_resilience.policy.decision import Reason
from celery_resilience.settings import Settings, refuse_long_names
from tests.client import Client
from tests.integration.test_brokers import Result, Rig
from tests.integration.test_delay import DelayRig, levels
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

RABBITS = "tests.apps.rabbits"
StartWorker = Callable[..., Worker]

on_classic = pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
on_quorum = pytest.mark.parametrize("broker", ["rabbitmq-quorum"], indirect=True)
both_versions = pytest.mark.parametrize(
    "broker", ["rabbitmq-quorum", "rabbitmq4-quorum"], indirect=True
)
on_4 = pytest.mark.parametrize("broker", ["rabbitmq4-quorum"], indirect=True)


@pytest.fixture
def rig(broker: Broker) -> Iterator[Rig]:
    made = Rig(broker.broker_url, broker.queue_type)
    yield made
    made.moves.close()
    made.connection.release()


@pytest.fixture
def server(broker: Broker, request: pytest.FixtureRequest) -> RabbitServer:
    """The one that *broker* is on."""
    made: RabbitServer = request.getfixturevalue(f"{broker.name.split('-')[0]}_server")
    return made


def amqp(rig: Rig) -> AmqpBroker:
    assert isinstance(rig.moves, AmqpBroker)
    return rig.moves


def send(client: Client, task: str, *args: Any, **options: Any) -> Any:
    return client.app.send_task(f"{RABBITS}.{task}", args, **options)


def rabbits(client: Client, broker: Broker, queues: Any = None, **conf: Any) -> dict[str, str]:
    """The environment of a worker with these queues and settings."""
    own = {"x-queue-type": broker.queue_type}
    told = {name: {**own, **(more or {})} for name, more in (queues or {"shop": {}}).items()}
    return {**client.env, "QUEUES": json.dumps(told), "CONF": json.dumps(conf)}


# Tasks that expire


@on_classic
def test_message_that_expires_with_no_worker_there_is_dropped_unless_kept(
    broker: Broker, client: Client
) -> None:
    """As on stock: a queue that nobody consumes does not fill up with what nobody wants."""
    for keep, queue in ((False, "shop"), (True, "other")):
        app = Celery("producer", broker=broker.broker_url, set_as_current=False)
        install(app)
        app.conf.update(resilience_dead_letter_expired=keep, task_queues=[Queue(queue)])
        for _ in range(5):
            app.send_task("t", expires=0.05, queue=queue)
        app.close()
    eventually(lambda: client.count("shop") == 0, message="five that nobody keeps are dropped")
    assert client.count("other") == 5


# What a task rejects


@pytest.mark.parametrize("chosen", ["exchange", "letter", ["by-policy"]], ids=str)
@on_classic
def test_rejected_message_goes_where_its_queue_sends_it(
    broker: Broker, client: Client, start_worker: StartWorker, chosen: Any
) -> None:
    """The owner's exchange gets it, and no letter is made of it; unless letters were chosen."""
    with client.app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.exchange_declare("parking", "fanout", durable=True, auto_delete=False)
        channel.queue_declare("parked", durable=True, auto_delete=False)
        channel.queue_bind("parked", "parking")
    queues = {"shop": None, "other": {"x-dead-letter-exchange": "parking"}, "by-policy": None}
    env = rabbits(client, broker, queues, resilience_reject_on_dlx=chosen)
    worker = start_worker(RABBITS, broker, env=env)
    for queue in ("shop", "other"):
        send(client, "rejects", queue, queue=Queue(queue, no_declare=True))
    letters, parked = (2, 0) if chosen == "letter" else (1, 1)
    eventually(lambda: client.count("dead_letter") == letters)
    eventually(lambda: client.count("parked") == parked)
    assert {letter.reason for letter in client.letters()} == {Reason.REJECTED}
    assert client.executions() == {"shop": 1, "other": 1}
    assert ("of other rejects goes" in worker.log()) is (chosen == "exchange")
    assert ("of by-policy, other rejects goes" in worker.log()) is (chosen == ["by-policy"])


# Dead-letter queues


@on_4
def test_letters_lie_in_a_queue_of_the_apps_own_type(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """A classic one would be away with its node, and all workers would stand still with it."""
    start_worker(RABBITS, broker, env=rabbits(client, broker))
    send(client, "dies", "d", queue=Queue("shop", no_declare=True))
    eventually(lambda: client.count("dead_letter") == 1)
    with client.app.connection_for_write() as connection:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": -1}
        connection.default_channel.queue_declare(
            "dead_letter", durable=True, auto_delete=False, arguments=arguments
        )  # else it is refused


@on_classic
def test_whatever_a_message_was_its_copies_are_persistent(rig: Rig) -> None:
    """A letter, a retry and a replay outlive a restart of RabbitMQ."""
    for move in ("bury", "hold", "hold a while"):
        rig.publish([[], {}, {}], delivery_mode=1)
        delivery = rig.receive()
        assert delivery.message.properties["delivery_mode"] == 1
        result = Result()
        if move == "bury":
            rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
        else:
            rig.moves.schedule(delivery, delivery.envelope, 1.5 if "while" in move else 0, result)
        assert result.only is None
        delivery.ack()
        if move == "hold":
            copy = rig.receive()
            assert copy.message.properties["delivery_mode"] == 2
            copy.ack()
    eventually(lambda: rig.moves.count("celery_resilience.delay.1") == 0)
    assert rig.receive().message.properties["delivery_mode"] == 2
    (letter,) = rig.lying("dead_letter")
    assert letter.properties["delivery_mode"] == 2


# Tasks that wait in a worker


@on_4
def test_message_held_for_its_eta_is_not_destroyed(
    broker: Broker, client: Client, server: RabbitServer, start_worker: StartWorker
) -> None:
    """When its worker has died it waits in RabbitMQ, where nothing counts that against it."""
    declare(client)
    limit_deliveries(server, broker, "shop", 1)
    send(client, "good", "g", countdown=3600, queue="shop")
    worker = start_worker(RABBITS, broker, env=rabbits(client, broker))
    eventually(lambda: "] received" in worker.log())
    worker.kill()
    worker = start_worker(RABBITS, broker, env=rabbits(client, broker))
    with levels(broker) as moves:
        eventually(lambda: (2048.0, 1) in moves.waiting_levels(), message="an hour, from the top")
        worker.kill()
        start_worker(RABBITS, broker, env=rabbits(client, broker))
        assert [each for each in moves.waiting_levels() if each[1]] == [(2048.0, 1)]
        assert (moves.count("shop"), moves.count("dead_letter")) == (0, 0)
    assert client.executions() == {}


@on_4
def test_message_that_comes_back_and_is_never_begun_is_published_again(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """A worker that loses its connection again and again, before it comes to that message."""
    declare(client)
    send(client, "good", "g", queue="shop")
    come_back(client, "shop", 10)
    worker = start_worker(RABBITS, broker, env=rabbits(client, broker))
    eventually(lambda: client.executions()["g"] == 1)
    assert "redelivered 10 times" in worker.log()


def declare(client: Client) -> None:
    """Make the producer's queues before any worker does."""
    with client.app.connection_for_write() as connection:
        for queue in client.app.conf.task_queues:
            queue.bind(connection.default_channel).declare()


def come_back(client: Client, queue: str, times: int) -> None:
    """Let the first message of *queue* be given back so often."""
    with client.app.connection_for_read() as connection:
        channel = connection.default_channel
        for _ in range(times):
            message = eventually(lambda: channel.basic_get(queue))
            channel.basic_reject(message.delivery_tag, requeue=True)


# Looking


def limit_deliveries(server: RabbitServer, broker: Broker, queue: str, limit: int) -> None:
    """As an operator's policy does."""
    vhost = broker.broker_url.rsplit("/", 1)[1]
    server.evaluate(
        f'rabbit_policy:set(<<"{vhost}">>, <<"limit">>, <<"^{queue}$">>, '
        f'[{{<<"delivery-limit">>, {limit}}}], 0, <<"queues">>, <<"tests">>).'
    )


def look(moves: Any, queue: str = "dead_letter", die: bool = False) -> list[str]:
    """The ids of what lies there; *die*: as a command that is killed."""
    found = [each.envelope.headers["id"] for each in moves.browse(queue)]
    if die:
        moves._link.connection.collect()
        moves._browsers.clear()
    moves.close()
    return found


@pytest.mark.parametrize(
    ("broker", "limit"),
    [("rabbitmq-quorum", 1), ("rabbitmq-quorum", 5), ("rabbitmq4-quorum", None)],
    indirect=["broker"],
)
def test_look_never_costs(
    broker: Broker, rig: Rig, server: RabbitServer, limit: int | None
) -> None:
    """Whatever limit of deliveries a policy sets, or RabbitMQ 4 itself; and killed looks too."""
    arguments = {"x-queue-type": "quorum"}
    Queue("dead_letter", queue_arguments=arguments).bind(rig.channel).declare()
    if limit is not None:
        limit_deliveries(server, broker, "dead_letter", limit)
    names = [f"{n:02}" for n in range(30)]
    for name in names:
        headers = {"task": "t", "id": name}
        rig.connection.Producer().publish([], routing_key="dead_letter", headers=headers)
    killed = {4, 9} if limit != 1 else set()
    for n in range(23 if limit is None else 8):
        looked = look(rig.moves, die=n in killed)
        assert sorted(looked) == names, f"look {n}"
        # RabbitMQ 3 delivers what was given back first only where a limit is set.
        if n not in killed and n - 1 not in killed and (limit is None or limit == 1):
            assert looked == names, f"the order at look {n}"
        eventually(
            lambda: rig.moves.count("dead_letter") == 30,
            message=f"{n}: {rig.moves.count('dead_letter')}",
        )


@both_versions
def test_messages_that_others_requeue_are_not_taken_for_the_one_tried(
    broker: Broker, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look tries one message of which it has written a copy, and removes it: that one alone."""
    rig.declare("dead_letter")
    publish, channel = rig.connection.Producer().publish, rig.connection.channel()

    def send(name: str) -> None:
        publish([], routing_key="dead_letter", headers={"task": "t", "id": name})

    def take() -> Any:
        found = eventually(lambda: channel.basic_get("dead_letter"))
        return channel.message_to_python(found)

    send("other")
    take().requeue()
    lent = take()  # once given back, as the one that is tried will be
    send("tried")
    take().requeue()
    found = [each.envelope.headers["id"] for each in rig.moves.browse("dead_letter")]
    assert found == ["tried"]
    spare = QueueBrowser._spare

    def they_give_back_first(self: QueueBrowser) -> None:
        lent.requeue()
        eventually(lambda: rig.moves.count("dead_letter") == 1, message="the other is back")
        spare(self)

    monkeypatch.setattr(QueueBrowser, "_spare", they_give_back_first)
    rig.moves.close()
    monkeypatch.undo()
    eventually(lambda: rig.moves.count("dead_letter") == 2, message="both are back")
    assert sorted(look(rig.moves)) == ["other", "tried"]


@on_quorum
def test_others_hear_that_somebody_looks_until_all_is_given_back(broker: Broker, rig: Rig) -> None:
    """What is lent is counted for nobody: a count of 0 must not be taken for an all-clear."""
    rig.declare("dead_letter")
    for n in range(300):
        rig.connection.Producer().publish([n], routing_key="dead_letter")
    other = Rig(broker.broker_url, broker.queue_type)
    seen: list[tuple[int, bool]] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(asked(other.moves))

    def asked(moves: Any) -> tuple[int, bool]:
        figures = moves.figures("dead_letter")
        return figures.messages, bool(figures.unknown)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(5):
            assert len(list(rig.moves.browse("dead_letter"))) == 300
            rig.moves.close()
    finally:
        stop.set()
        watcher.join()
    assert any(unknown for _, unknown in seen)
    assert [each for each in seen if each[0] < 300 and not each[1]] == []
    assert asked(other.moves) == (300, False)
    other.moves.close()
    other.connection.release()


# Waiting retries


@both_versions
def test_message_with_nowhere_to_go_holds_nobody_up(broker: Broker) -> None:
    """A queue is deleted with its dead-letter queue while more retries wait than a level can hold
    back: those of other queues go on, and theirs are found in the last place there is."""
    rig = DelayRig(broker, dead_letter_queue="dead.{queue}")
    old = rig.declare("old")
    for n in range(40):
        headers = {"task": "t", "id": f"old-{n}"}
        rig.connection.Producer().publish([[n], {}, {}], routing_key="old", headers=headers)
    for _ in range(40):
        message = eventually(old.get)
        copy = Envelope.received(message, "old")
        copy = copy.with_header(History(queue="old").dumps())
        result = Result()
        rig.moves.schedule(Delivery(message, copy, message.ack), copy, 3, result)
        assert result.only is None
        message.ack()
    for queue in ("old", "dead.old"):
        rig.channel.queue_delete(queue)
    eventually(lambda: rig.moves.astray() == 40)
    for n in range(3):
        assert rig.hold(3, headers={"task": "t", "id": f"good-{n}"}) is None
    arrived = rig.arrive(3, timeout=15)
    assert sorted(message.headers["id"] for message in arrived) == ["good-0", "good-1", "good-2"]
    letters = [DeadLetter.from_envelope(each.envelope) for each in rig.moves.browse(ASTRAY)]
    assert {letter.task_id for letter in letters} == {f"old-{n}" for n in range(40)}
    assert {(letter.reason, letter.envelope.queue) for letter in letters} == {
        (Reason.UNROUTABLE, "old")
    }
    rig.moves.close()
    rig.connection.release()


@on_4
def test_delay_queue_deleted_while_retries_wait_is_made_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing that is published finds it out; and they are no letters meanwhile."""
    monkeypatch.setattr(upkeep, "EVERY", 0.2)
    rig = DelayRig(broker)
    assert rig.moves.absent() == [], "no retry has ever waited here"
    rig.moves.prepare(["work"])
    assert rig.moves.absent() == []
    for n in range(3):
        assert rig.hold(12, headers={"task": "t", "id": str(n)}) is None
    make, rig.moves._upkeep._make = rig.moves._upkeep._make, lambda connection: None
    rig.channel.exchange_delete(DUE)
    rig.channel.exchange_delete(level_name(1))
    rig.channel.queue_delete(level_name(2))
    lost = [f"the exchange {DUE}", f"the exchange {level_name(1)}", f"the queue {level_name(2)}"]
    assert rig.moves.absent() == sorted(lost)
    rig.moves._upkeep._make = make
    eventually(lambda: rig.moves.absent() == [])
    arrived = rig.arrive(3)
    assert sorted(message.headers["id"] for message in arrived) == ["0", "1", "2"]
    assert rig.moves.count("dead_letter") == 0
    rig.moves.close()
    rig.connection.release()


@both_versions
def test_queues_type_can_be_known(broker: Broker, rig: Rig) -> None:
    """For doctor: the type, and how often a message may come back."""
    moves = amqp(rig)
    version = rig.connection.connection.server_properties["version"]
    four = 20 if int(version.split(".")[0]) >= 4 else -1
    quorum: dict[str, Any] = {"x-queue-type": "quorum"}
    for name, arguments, expected in (
        ("untold", {}, QueueFacts("classic", -1)),
        ("classic", {"x-queue-type": "classic"}, QueueFacts("classic", -1)),
        ("quorum", quorum, QueueFacts("quorum", four)),
        ("limited", {**quorum, "x-delivery-limit": 5}, QueueFacts("quorum", 5)),
        ("unlimited", {**quorum, "x-delivery-limit": -1}, QueueFacts("quorum", -1)),
    ):
        Queue(name, queue_arguments=arguments).bind(rig.channel).declare()
        assert moves.facts(name) == expected, name
    assert moves.facts("nowhere") is None


# Names


@on_classic
def test_letters_of_a_queue_with_too_long_a_name_go_to_the_last_place(broker: Broker) -> None:
    """Told of it when it ran, a worker neither keeps its letters for ever nor its retries."""
    rig = DelayRig(broker, dead_letter_queue="dead.{queue}")
    queue = rig.declare(LONG)
    for move in ("bury", "hold"):
        headers = {"task": "t", "id": "1"}
        rig.connection.Producer().publish([[], {}, {}], routing_key=LONG, headers=headers)
        message = eventually(queue.get)
        delivery = Delivery(message, Envelope.received(message, LONG), message.ack)
        result = Result()
        if move == "bury":
            rig.moves.dead_letter(delivery, delivery.envelope, f"dead.{LONG}", {}, result)
        else:
            rig.moves.schedule(delivery, delivery.envelope, 1, result)
        assert result.only is None
        message.ack()
    assert rig.moves.astray() == 1
    eventually(lambda: rig.moves.count(LONG) == 1)
    rig.moves.close()
    rig.connection.release()


LONG = "a" * 252


def test_dead_letter_queue_that_rabbitmq_cannot_name_is_refused() -> None:
    """At the worker's start, and with the way out."""
    app = Celery("long", broker="memory://", set_as_current=False)
    settings = Settings(dead_letter_queue="dead.{queue}")
    refuse_long_names(app, settings, ["shop", "ü" * 125])
    with pytest.raises(ImproperlyConfigured, match=r"at most 255 bytes, this one 257"):
        refuse_long_names(app, settings, ["shop", LONG])
