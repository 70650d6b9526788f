"""Retries wait in RabbitMQ, with real brokers and real workers: late by little, and never early."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from amqp.abstract_channel import AbstractChannel
from kombu import Connection

from celery_resilience.brokers.base import Delivery, Unroutable
from celery_resilience.brokers.connect import open_broker
from celery_resilience.brokers.rabbitmq import delay
from celery_resilience.brokers.rabbitmq.broker import AmqpBroker
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import DUE
from celery_resilience.policy.decision import Reason
from celery_resilience.settings import Settings
from tests.client import Client
from tests.integration.test_brokers import Result, Rig
from tests.servers import RabbitServer, eventually
from tests.worker import Broker, Worker

LATE = "tests.apps.late"
RABBITS = ["rabbitmq-classic", "rabbitmq-quorum"]

StartWorker = Callable[..., Worker]

both = pytest.mark.parametrize("broker", RABBITS, indirect=True)
on_quorum = pytest.mark.parametrize("broker", RABBITS[1:], indirect=True)


class DelayRig(Rig):
    """The conformance suite's, with a Broker that knows the settings of a worker."""

    moves: AmqpBroker

    def __init__(self, broker: Broker, **settings: Any) -> None:
        super().__init__(broker.broker_url, broker.queue_type)
        self.use(**settings)

    def use(self, **settings: Any) -> None:
        """Go on through a Broker with these settings."""
        self.moves.close()
        moves = open_broker(self.connection, settings=Settings(**settings))
        assert isinstance(moves, AmqpBroker)
        self.moves = moves

    def hold(self, seconds: float, **options: Any) -> BaseException | None:
        """Publish a message, receive it and hold it; what the move said."""
        self.publish([[], {}, {}], **options)
        message = eventually(self.queue.get)
        delivery = Delivery(message, Envelope.received(message, "work"), message.ack)
        result = Result()
        self.moves.schedule(delivery, delivery.envelope, seconds, result)
        (delivery.ack if result.only is None else delivery.message.requeue)()
        return result.only

    @property
    def waiting(self) -> dict[float, int]:
        """How many wait in each level that is not empty."""
        return {seconds: count for seconds, count in self.moves.waiting_levels() if count}

    def arrive(self, count: int, timeout: float = 30) -> list[Any]:
        """The *count* messages that come into the work queue."""
        found: list[Any] = []

        def all_are_there() -> bool:
            found.extend(self.lying())
            return len(found) >= count

        eventually(all_are_there, timeout, message=f"{count} messages arrive")
        return found


@pytest.fixture
def rig(broker: Broker) -> Iterator[DelayRig]:
    made = DelayRig(broker)
    yield made
    made.moves.close()
    made.connection.release()


def put(client: Client, queue: str, name: str, seconds: float, times: int = 1) -> None:
    """Send ``again`` straight into *queue*."""
    headers = {"lang": "py", "task": f"{LATE}.again", "id": name, "retries": 0, "root_id": name}
    body: Any = [[name, seconds, times], {}, {}]
    client.put(queue, body, headers=headers, correlation_id=name, delivery_mode=2)


def starts(client: Client, name: str) -> list[float]:
    """When each attempt of *name* began."""
    return [float(line.split()[2]) for line in client.lines() if line.split()[0] == name]


def ran(client: Client, name: str, times: int) -> bool:
    return client.executions()[name] >= times


@contextmanager
def levels(broker: Broker) -> Iterator[AmqpBroker]:
    with Connection(broker.broker_url) as connection:
        moves = open_broker(connection)
        assert isinstance(moves, AmqpBroker)
        yield moves
        moves.close()


def waiting(broker: Broker) -> int:
    with levels(broker) as moves:
        return sum(count for _, count in moves.waiting_levels())


# Through workers


@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        (RABBITS[0], "prefork"),
        (RABBITS[1], "prefork"),
        (RABBITS[1], "solo"),
        (RABBITS[0], "gevent"),
    ],
    indirect=["broker"],
)
def test_retry_comes_within_two_seconds_and_never_early(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """By the clock that all processes share, whatever the delay."""
    start_worker(LATE, broker, pool=pool, env=client.env)
    delays = [0.3, 1, 1.2, 2, 3.5, 5] * 2
    for n, seconds in enumerate(delays):
        put(client, "shop", f"t{n}", seconds)
    for n, seconds in enumerate(delays):
        eventually(partial(ran, client, f"t{n}", 2), message=f"t{n} is back after {seconds}")
        first, second = starts(client, f"t{n}")
        assert seconds <= second - first < seconds + 2
    assert waiting(broker) == 0


@both
def test_scheduled_retry_is_held_by_no_worker(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """The worker can end; the retry is in none of its queues, but in the broker."""
    worker = start_worker(LATE, broker, env=client.env)
    put(client, "shop", "t", 8)
    eventually(lambda: waiting(broker) == 1)
    assert worker.terminate() == 0
    assert client.count("shop") == 0
    eventually(lambda: client.count("shop") == 1, message="nobody is needed to move it")
    start_worker(LATE, broker, env=client.env)
    eventually(lambda: ran(client, "t", 2))


@both
def test_ten_retries_in_a_row(broker: Broker, client: Client, start_worker: StartWorker) -> None:
    """RabbitMQ takes a message that passes the same queues again and again for no cycle."""
    start_worker(LATE, broker, env=client.env)
    put(client, "shop", "t", 1, times=10)
    put(client, "shop", "two-levels", 3, times=3)
    for name, seconds, times in (("t", 1, 11), ("two-levels", 3, 4)):
        eventually(partial(ran, client, name, times), timeout=40, message=f"{name} is done")
        for earlier, later in pairwise(starts(client, name)):
            assert seconds <= later - earlier < seconds + 2
    assert client.letters() == []


LONG = "a.long." + "name" * 60


@both
def test_each_retry_comes_back_into_its_own_queue(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Whatever their names mean to a topic exchange; and the task sees where it came from."""
    names = ["q", "x.q", "q.x", "a#b", "#", "*", "*.q", "100%", "%2E", ".", LONG, LONG + "2", "ü.q"]
    start_worker(LATE, broker, queues=",".join(names), env=client.env)
    for n, name in enumerate(names):
        put(client, name, f"t{n}", 1 + n % 2)  # the last level they wait in is not the same
    for n, name in enumerate(names):
        eventually(partial(ran, client, f"t{n}", 2), message=f"it is back in {name}")
    eventually(lambda: waiting(broker) == 0)
    assert client.executions() == {f"t{n}": 2 for n in range(len(names))}
    came_from = {line.split(maxsplit=3)[0]: line.split(maxsplit=3)[3] for line in client.lines()}
    assert came_from == {f"t{n}": f"|{name}" for n, name in enumerate(names)}
    assert client.letters() == []


@both
def test_queue_that_is_consumed_only_later(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """The worker is told of it at run time, and was not asked to prepare anything for it."""
    worker = start_worker(LATE, broker, queues="shop", env=client.env)
    client.app.control.add_consumer("newcomer", destination=[worker.name])
    eventually(lambda: "Started consuming from newcomer" in worker.log())
    put(client, "newcomer", "t", 1)
    eventually(lambda: ran(client, "t", 2))
    assert client.letters() == []


@both
def test_queue_is_deleted_while_its_retries_wait(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """They become letters that tell which queue it was, and can be replayed into the next one."""
    worker = start_worker(LATE, broker, env=client.env)
    for n in range(3):
        put(client, "shop", f"t{n}", 8)
    eventually(lambda: waiting(broker) == 3)
    worker.kill()  # at once: the queue has to be gone before the first is due
    with client.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("shop")
    eventually(lambda: client.count("dead_letter") == 3, timeout=40)
    letters = client.letters()
    assert {letter.task_id for letter in letters} == {"t0", "t1", "t2"}
    for letter in letters:
        assert (letter.reason, letter.envelope.queue) == (Reason.UNROUTABLE, "shop")
        assert letter.rule == "its queue shop has gone"
        assert letter.history.count == 1
    start_worker(LATE, broker, env=client.env)  # makes the queue again
    from celery_resilience.operate.dead_letters import DeadLetters

    with DeadLetters(client.app) as dead:
        assert [str(replayed.result) for replayed in dead.replay("all")] == ["published"] * 3
    for n in range(3):
        eventually(
            partial(ran, client, f"t{n}", 3), timeout=40, message=f"t{n} has failed and comes back"
        )


@both
def test_rabbitmq_is_killed_while_retries_wait(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    """All of them run, and in their time, though no node was there when they were due."""
    start_worker(LATE, broker, env=client.env)
    names = [f"t{n}" for n in range(20)]
    for name in names:
        put(client, "shop", name, 4)
    eventually(lambda: waiting(broker) == 20)
    rabbitmq_server.kill()
    rabbitmq_server.start()
    for name in names:
        eventually(partial(ran, client, name, 2), timeout=60, message=f"{name} is back")
    for name in names:
        begun = starts(client, name)
        assert begun[1] - begun[0] >= 4
    eventually(lambda: waiting(broker) == 0)
    assert client.letters() == []


@both
def test_consumer_timeout_that_is_shorter_than_the_delay(
    broker: Broker, client: Client, rabbitmq_server: RabbitServer, start_worker: StartWorker
) -> None:
    """Nothing is unacknowledged meanwhile: no channel is closed, and the task runs once."""
    with consumer_timeout(rabbitmq_server, 1000):
        worker = start_worker(LATE, broker, env=client.env)
        put(client, "shop", "t", 4)
        eventually(lambda: ran(client, "t", 2))
        assert client.value(client.app.AsyncResult("t")) == "t"
    assert client.executions() == {"t": 2}
    assert "PRECONDITION_FAILED" not in worker.log()
    assert "Connection to broker lost" not in worker.log()


@contextmanager
def consumer_timeout(server: RabbitServer, milliseconds: int) -> Iterator[None]:
    """Channels that are opened meanwhile have it, and look at their clock as often."""

    def limit(timeout: int, tick: int) -> None:
        server.evaluate(
            f"application:set_env(rabbit, consumer_timeout, {timeout}),"
            f"application:set_env(rabbit, channel_tick_interval, {tick})."
        )

    limit(milliseconds, milliseconds // 4)
    try:
        yield
    finally:
        limit(1_800_000, 60_000)


@both
def test_stock_celery_goes_on_with_a_retry_that_waited(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Its own Task.retry sends it back through our exchange: into the same queue, and no other."""
    worker = start_worker(LATE, broker, queues="shop,x.q,q", env=client.env)
    put(client, "x.q", "t", 3, times=4)
    eventually(lambda: waiting(broker) == 1)
    worker.terminate()
    start_worker(LATE, broker, queues="x.q", env={**client.env, "STOCK": "1"})
    eventually(lambda: ran(client, "t", 5), timeout=40)
    assert [line.split()[1] for line in client.lines()] == ["0", "1", "2", "3", "4"]
    assert client.lines()[1].split(maxsplit=3)[3].startswith(f"{DUE}|"), "what stock Celery sees"
    assert [client.count(queue) for queue in ("shop", "q", "dead_letter")] == [0, 0, 0]


@both
def test_retries_wait_in_the_worker_where_that_was_chosen(rig: DelayRig) -> None:
    rig.use(hold_retries="worker")
    assert rig.hold(60) is None
    assert rig.waiting == {}
    (copy,) = rig.lying()
    assert copy.headers["eta"]


# Through the Broker alone


@both
def test_copy_waits_without_an_eta_and_keeps_its_priority(rig: DelayRig) -> None:
    """The worker that receives it would wait a second time."""
    assert rig.hold(1, priority=3, headers={"task": "t", "id": "1", "eta": "2099-01-01"}) is None
    assert rig.waiting == {1: 1}
    (copy,) = rig.arrive(1)
    assert copy.headers["eta"] is None
    assert copy.properties["priority"] == 3
    assert copy.delivery_info["exchange"] == DUE


@both
def test_each_priority_has_levels_of_its_own(rig: DelayRig) -> None:
    """From 4.0 on a quorum queue would let one that is not due yet stand before one that is."""
    for priority in (0, 7):
        assert rig.hold(2, priority=priority) is None
    assert rig.waiting == {2: 2}
    names = {delay.level_name(1, priority) for priority in (0, 7)}
    assert [rig.moves.count(name) for name in names] == [1, 1]
    assert sorted(copy.properties["priority"] for copy in rig.arrive(2)) == [0, 7]


@both
@pytest.mark.parametrize("level", [0, 1, 2])
def test_level_that_was_deleted_is_made_again(rig: DelayRig, level: int) -> None:
    """Found out when a message has nowhere to go, or when the next worker starts."""
    assert rig.hold(4) is None
    rig.channel.queue_delete(delay.level_name(level))
    problem = rig.hold(7)  # it passes all three
    if level == 2:
        assert isinstance(problem, BrokerError)
        assert not isinstance(problem, Unroutable), "its own queue is there"
        assert rig.hold(7) is None
    else:
        assert problem is None
        rig.moves.prepare(["work"])
    assert rig.moves.count(delay.level_name(2)) >= 1
    rig.lying()  # what the first try gave back
    rig.arrive(1)


@both
def test_exchange_that_was_deleted_is_made_again(rig: DelayRig) -> None:
    assert rig.hold(4) is None
    rig.channel.exchange_delete(delay.level_name(2))
    assert rig.hold(4) is not None
    rig.lying()
    assert rig.hold(4) is None
    assert rig.waiting == {4: 2}


@both
def test_retry_of_a_queue_that_has_gone_is_unroutable(rig: DelayRig) -> None:
    """Nothing was written: the settler makes a letter of it."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    elsewhere = replace(delivery, envelope=replace(delivery.envelope, queue="gone"))
    result = Result()
    rig.moves.schedule(elsewhere, elsewhere.envelope, 30, result)
    assert isinstance(result.only, Unroutable)
    assert rig.waiting == {}


@both
def test_letter_is_for_the_queue_that_was_set_when_the_retry_began(rig: DelayRig) -> None:
    """Another setting since then makes no second letter of it."""
    assert rig.hold(2) is None
    rig.use(dead_letter_queue="other.{queue}")
    assert rig.hold(2, headers={"task": "t", "id": "2"}) is None
    rig.channel.queue_delete("work")
    eventually(lambda: rig.moves.count("dead_letter") and rig.moves.count("other.work"))
    assert [letter.headers["id"] for letter in rig.lying("dead_letter")] == ["1"]
    assert [letter.headers["id"] for letter in rig.lying("other.work")] == ["2"]


@both
def test_dead_letter_queue_that_was_deleted_is_made_and_bound_again(rig: DelayRig) -> None:
    """The next letter finds out, the next retry sees to it that unroutable ones come there too."""
    assert rig.hold(1) is None
    rig.arrive(1)
    rig.channel.queue_delete("dead_letter")
    rig.publish([[], {}, {}])
    message = eventually(rig.queue.get)
    delivery = Delivery(message, Envelope.received(message, "work"), message.ack)
    result = Result()
    rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
    assert isinstance(result.only, Unroutable)
    message.requeue()
    rig.lying()
    assert rig.hold(2) is None
    rig.channel.queue_delete("work")
    eventually(lambda: rig.moves.count("dead_letter") == 1)


@both
@pytest.mark.timeout(300)
def test_rabbitmq_is_killed_while_retries_hop(
    broker: Broker, rig: DelayRig, rabbitmq_server: RabbitServer
) -> None:
    """In the very moment that some have been moved and others have not: none is lost."""
    for n in range(200):
        assert rig.hold(3, headers={"task": "t", "id": str(n)}) is None
    eventually(lambda: rig.moves.count("work") >= 20, every=0)
    rabbitmq_server.kill()
    rabbitmq_server.start()
    after = DelayRig(broker)
    missing = {str(n) for n in range(200)}

    def all_have_come() -> bool:  # some of them twice; one that hops is in no level for a moment
        missing.difference_update(message.headers["id"] for message in after.lying())
        return not missing

    try:
        # RabbitMQ sends a hop that was not confirmed again after three minutes.
        eventually(all_have_come, timeout=240, message="none is lost")
        eventually(lambda: after.waiting == {})
    finally:
        after.moves.close()
        after.connection.release()


@on_quorum
def test_server_without_such_quorum_queues(
    rig: DelayRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Retries wait in classic queues, which is said once; and such a level is taken as it is."""
    monkeypatch.setitem(delay.QUORUM, "x-queue-type", "nonsense")
    delay._warned.clear()
    with caplog.at_level(logging.WARNING):
        assert rig.hold(2) is None
    assert len([r for r in caplog.records if "retries wait in classic" in r.message]) == 1
    rig.arrive(1)
    monkeypatch.undo()
    rig.use()
    assert rig.hold(2) is None
    rig.arrive(1)


@on_quorum
def test_user_who_may_not_make_them(
    broker: Broker, rig: DelayRig, rabbitmq_server: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Then retries wait as they do in plain Celery, and the log says so once."""
    vhost = broker.broker_url.rsplit("/", 1)[1]
    rabbitmq_server.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{vhost}">>,'
        ' <<"^(?!celery_resilience).*">>, <<".*">>, <<".*">>, <<"tests">>).'
    )
    delay._warned.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert rig.hold(60) is None
            (copy,) = rig.lying()
            assert copy.headers["eta"]
    assert len([r for r in caplog.records if "can't wait in RabbitMQ" in r.message]) == 1


def test_words_are_one_word_and_their_queues_own() -> None:
    """No two queues have the same, and none means anything to a topic exchange."""
    names = ["q", "x.q", "x%2Eq", "%", "#", "*", "", "ü", "a" * 102, "a" * 103, "a" * 104]
    words = [delay.word(name) for name in names]
    assert len(set(words)) == len(names)
    assert not any(set(word) & set(".*#") for word in words)
    longest = delay.routing_key(2**25 - 1, "#" * 255, "ü" * 127)
    assert len(longest.encode()) <= 255
    assert delay.routing_key(5, "q", "d.l").endswith("0.0.1.0.1.q.d%2El")


def test_delay_of_more_than_all_levels_is_refused() -> None:
    for seconds in (0, 2**delay.LEVELS):
        with pytest.raises(ValueError, match="does not fit"):
            delay.routing_key(seconds, "q", "dead_letter")


@on_quorum
def test_task_revoked_while_it_waits_does_not_run_on_a_worker_that_was_not_told(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """RabbitMQ can't look for it; the result backend is told, and asked when it has waited."""
    worker = start_worker("tests.apps.shop", broker, env=client.env)
    failed = [client.send("refused", f"failed-{n}") for n in range(5)]
    eventually(lambda: {client.state(each) for each in failed} == {"FAILURE"})
    result = client.send("asks", "asks", 8)
    eventually(lambda: client.state(result) == "RETRY")
    client.app.control.revoke([*(each.id for each in failed), result.id])
    eventually(lambda: client.state(result) == "REVOKED")
    assert {client.state(each) for each in failed} == {"FAILURE"}, "these don't wait"
    eventually(lambda: len(client.letters()) == 5)
    worker.kill()
    other = start_worker("tests.apps.shop", broker, env=client.env)
    eventually(lambda: "Discarding revoked task" in other.log())
    assert client.executions()["asks"] == 1
    assert len(client.letters()) == 5


@pytest.mark.parametrize("broker", ["rabbitmq-classic"], indirect=True)
def test_stamp_revoked_while_its_retry_waits_is_known_to_the_workers_that_were_told(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """They have it in their memory alone, as in stock Celery: a new one runs it."""
    worker = start_worker("tests.apps.shop", broker, env=client.env)

    def send_and_revoke(name: str) -> Any:
        signature = client.app.signature("tests.apps.shop.asks", (name, 4))
        signature.stamp(order=name)
        result = signature.apply_async()
        eventually(lambda: client.state(result) == "RETRY")
        with client.app.connection_for_write() as connection:
            replies = client.app.control.revoke_by_stamped_headers(
                {"order": name}, connection=connection, reply=True, timeout=10, limit=1
            )
        assert len(replies) == 1
        return result

    told = send_and_revoke("told")
    eventually(lambda: client.state(told) == "REVOKED")
    send_and_revoke("forgotten")
    worker.kill()
    start_worker("tests.apps.shop", broker, env=client.env)
    eventually(lambda: client.executions()["forgotten"] == 2)
    assert client.executions()["told"] == 1


@both
def test_levels_are_not_made_again_nor_waited_for_one_by_one(
    rig: DelayRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far away each answer that is waited for takes long, and the worker's loop stands."""
    answers: list[Any] = []
    wait = AbstractChannel.wait

    def counting(self: Any, method: Any, *args: Any, **options: Any) -> Any:
        answers.append(method)
        return wait(self, method, *args, **options)

    monkeypatch.setattr(AbstractChannel, "wait", counting)
    rig.moves.prepare(["work"])
    assert len(answers) < 30  # some hundred, one by one
    answers.clear()
    rig.moves._link.open()
    answers.clear()
    rig.moves._prepare(rig.moves._link.connection, rig.moves._link.declared, "work", 10)
    assert answers == []
