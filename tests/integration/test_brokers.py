"""The conformance suite: what every Broker does, on every broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.transport import memory

from celery_resilience.brokers.base import Broker as PendingSettlements
from celery_resilience.brokers.base import Delivery, NotOurs, Unroutable
from celery_resilience.brokers.connect import open_broker
from celery_resilience.brokers.rabbitmq import publisher as module_of_confirms
from celery_resilience.brokers.rabbitmq.publisher import ConfirmingPublisher
from celery_resilience.brokers.rabbitmq.queues import make
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.settings import Settings
from tests.servers import RabbitServer, eventually
from tests.worker import Broker

RABBITS = ["rabbitmq-classic", "rabbitmq-quorum", "rabbitmq4-classic", "rabbitmq4-quorum"]
LOOKABLE = ["redis", *RABBITS]
ALL = [*LOOKABLE, "memory"]


class Rig:
    """A queue, a consumer on it, and the Broker under test, all on one connection."""

    def __init__(self, url: str, queue_type: str) -> None:
        self.connection = Connection(url)
        self.connection.connect()
        self.channel = self.connection.channel()
        self.arguments = {"x-queue-type": queue_type}
        self.queue = self.declare("work")
        self.moves: PendingSettlements = open_broker(self.connection)
        self._consumer: Any = None
        self._messages: list[Any] = []

    def declare(self, name: str) -> Queue:
        queue = Queue(name, durable=True, queue_arguments=self.arguments)
        queue = queue.bind(self.channel)
        queue.declare()
        return queue

    def publish(self, body: Any, **options: Any) -> None:
        options = {"headers": {"task": "t", "id": "1", "retries": 0}, **options}
        self.connection.Producer().publish(body, routing_key="work", exchange="", **options)

    def receive(self, acked_early: bool = False) -> Delivery:
        """The next message, unacknowledged; the other ones stay with the broker."""
        if self._consumer is None:
            self.channel.basic_qos(0, 1, False)
            self._consumer = self.connection.Consumer(
                [self.queue], channel=self.channel, on_message=self._messages.append,
                accept=["json", "pickle", "msgpack", "yaml"],
            )  # fmt: skip
            self._consumer.consume()
        while not self._messages:
            self.connection.drain_events(timeout=5)
        message = self._messages.pop()
        if acked_early:
            message.ack()
        return Delivery(message, Envelope.received(message, "work"), message.ack, acked_early)

    def stop_receiving(self) -> None:
        """Cancel the consumer and give back what it has not let go."""
        if self._consumer is not None:
            self._consumer.cancel()
            self._consumer = None
        self.channel.close()
        self.channel = self.connection.channel()
        self.queue = self.queue.bind(self.channel)

    def lying(self, queue: str = "work") -> list[Any]:
        """All that lies in *queue*; it is taken out."""
        found = []
        while (message := Queue(queue).bind(self.channel).get()) is not None:
            found.append(message)
            message.ack()
        return found


class Result:
    """What a move has called ``done`` with."""

    def __init__(self) -> None:
        self.calls: list[BaseException | None] = []

    def __call__(self, problem: BaseException | None) -> None:
        self.calls.append(problem)

    @property
    def only(self) -> BaseException | None:
        (problem,) = self.calls
        return problem


@pytest.fixture
def rig(request: pytest.FixtureRequest, broker_named: Callable[[str], Broker]) -> Iterator[Rig]:
    if request.param == "memory":
        memory.Channel.queues.clear()  # they are the process's own, not the connection's
        made = Rig("memory://", "classic")
    else:
        broker = broker_named(request.param)
        made = Rig(broker.broker_url, broker.queue_type)
    yield made
    made.moves.close()
    made.connection.release()


def on(names: list[str]) -> Any:
    return pytest.mark.parametrize("rig", names, indirect=True)


def ack(delivery: Delivery, result: Result) -> None:
    assert result.only is None
    delivery.ack()


@on(ALL)
def test_hold_puts_the_copy_where_the_original_came_from(rig: Rig) -> None:
    """After the move there is one message: the copy; letting go of the original takes nothing."""
    rig.publish([[1], {}, {}], priority=3, correlation_id="1", headers={"task": "t", "id": "1"})
    delivery = rig.receive()
    result = Result()
    rig.moves.schedule(delivery, delivery.envelope.with_header("{}"), 0, result)
    ack(delivery, result)
    rig.stop_receiving()
    (copy,) = rig.lying()
    assert copy.payload == [[1], {}, {}]
    headers = Envelope.received(copy, "work").headers
    assert headers == {"task": "t", "id": "1", "eta": None, HEADER: "{}"}
    assert copy.properties["priority"] == 3
    assert copy.properties["correlation_id"] == "1"


@on(ALL)
@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_copy_can_be_read_like_the_original(
    rig: Rig, serializer: str, compression: str | None
) -> None:
    """Body, content type and encoding are the received ones, whatever they are."""
    body = [["é", 1.5], {"n": None}, {"chain": None}]
    rig.publish(body, serializer=serializer, compression=compression)
    delivery = rig.receive()
    original = (delivery.message.body, delivery.message.content_type)
    result = Result()
    rig.moves.schedule(delivery, delivery.envelope, 0, result)
    ack(delivery, result)
    again = rig.receive()
    assert (again.message.body, again.message.content_type) == original
    assert again.message.content_encoding == delivery.message.content_encoding
    assert again.message.payload == body
    again.ack()


@on(ALL)
def test_copy_is_delivered_under_a_tag_of_its_own(rig: Rig) -> None:
    """The late acknowledgement of the old holder can't take it away from the new one."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    result = Result()
    rig.moves.schedule(delivery, delivery.envelope, 0, result)
    ack(delivery, result)
    assert rig.receive().message.delivery_tag != delivery.message.delivery_tag


@on(ALL)
def test_bury_makes_the_dead_letter_queue(rig: Rig) -> None:
    """The first letter declares its queue; the work queue is empty afterwards."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    result = Result()
    rig.moves.dead_letter(
        delivery, delivery.envelope.with_header('{"v":1}'), "dead_letter", {}, result
    )
    ack(delivery, result)
    rig.stop_receiving()
    assert rig.moves.count("dead_letter") == 1
    assert rig.lying() == []


@on(ALL)
def test_message_acknowledged_before_is_written_all_the_same(rig: Rig) -> None:
    """With early acknowledgement there is nothing to let go, and everything to write."""
    rig.publish([[], {}, {}])
    delivery = rig.receive(acked_early=True)
    result = Result()
    rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
    assert result.only is None
    assert rig.moves.count("dead_letter") == 1


@on(LOOKABLE)
def test_reclaimed_message_is_not_written_twice(rig: Rig) -> None:
    """A message that the broker has given to somebody else meanwhile is left to them."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    rig.stop_receiving()  # the broker takes it back
    result = Result()
    rig.moves.schedule(delivery, delivery.envelope, 0, result)
    assert isinstance(result.only, NotOurs)
    assert len(rig.lying()) == 1


@pytest.mark.parametrize("rig", ["redis"], indirect=True)
def test_reclaimed_message_does_not_keep_its_place(rig: Rig) -> None:
    """With a prefetch limit of one the consumer goes on to the next message."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    qos, tag = delivery.message.channel.qos, delivery.message.delivery_tag
    client = delivery.message.channel._create_client()
    client.hdel("unacked", tag)  # another worker has it now
    result = Result()
    acked: list[int] = []
    rig.moves.schedule(replace(delivery, ack=lambda: acked.append(1)), delivery.envelope, 0, result)
    assert isinstance(result.only, NotOurs)
    assert qos.can_consume()
    assert acked == [], "its request is not done: the message may come again"


@on(RABBITS)
def test_dead_letter_queue_that_was_deleted_is_made_again(rig: Rig) -> None:
    """RabbitMQ says that the letter had nowhere to go; the next try finds out why."""
    for _ in range(2):
        rig.publish([[], {}, {}])
        delivery = rig.receive()
        for _ in range(2):
            result = Result()
            rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
            if result.only is None:
                break
            assert isinstance(result.only, Unroutable)
        ack(delivery, result)
        assert rig.moves.count("dead_letter") == 1
        rig.channel.queue_delete("dead_letter")


@on(RABBITS)
def test_copy_is_for_its_own_queue_alone(rig: Rig) -> None:
    """The sender's CC is done with: the copy would be routed there again."""
    rig.declare("copied")
    rig.publish([[], {}, {}], headers={"task": "t", "id": "1", "CC": ["copied"]})
    delivery = rig.receive()
    result = Result()
    rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
    ack(delivery, result)
    assert rig.moves.count("copied") == 1, "what the sender sent"


@on(LOOKABLE)
def test_looking_takes_nothing_and_changes_no_order(rig: Rig) -> None:
    """Two looks see the same messages in the same order, the oldest first."""
    for n in range(250):
        rig.publish([[n], {}, {}], headers={"task": "t", "id": str(n)})
    first = [found.envelope.headers["id"] for found in rig.moves.browse("work")]
    rig.moves.close()
    second = [found.envelope.headers["id"] for found in rig.moves.browse("work")]
    rig.moves.close()
    assert first == second == [str(n) for n in range(250)]
    assert rig.moves.count("work") == 250


@on(LOOKABLE)
def test_queue_that_is_not_there_is_empty(rig: Rig) -> None:
    assert rig.moves.count("nowhere") == 0
    assert list(rig.moves.browse("nowhere")) == []


@on(LOOKABLE)
def test_release_moves_one_message_and_no_other(rig: Rig) -> None:
    """The copy lies in the other queue, the one found has gone, its neighbours are there."""
    rig.declare("other")
    for n in range(3):
        rig.publish([[n], {}, {}], headers={"task": "t", "id": str(n)})
    found = list(rig.moves.browse("work"))[1]
    rig.moves.republish(found, found.envelope.with_header(None), "other")
    rig.moves.close()
    assert [f.envelope.headers["id"] for f in rig.moves.browse("other")] == ["1"]
    assert [f.envelope.headers["id"] for f in rig.moves.browse("work")] == ["0", "2"]


@pytest.mark.parametrize("rig", ["redis"], indirect=True)
def test_release_of_what_somebody_else_removed_writes_nothing(rig: Rig) -> None:
    rig.publish([[], {}, {}])
    (found,) = rig.moves.browse("work")
    rig.moves.republish(found, found.envelope, "other")
    with pytest.raises(NotOurs):
        rig.moves.republish(found, found.envelope, "other")
    assert rig.moves.count("other") == 1


@on(RABBITS)
def test_copy_for_a_queue_that_has_gone_is_unroutable(rig: Rig) -> None:
    """RabbitMQ would drop it without a word; the original is still there to be buried."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    elsewhere = replace(delivery, envelope=replace(delivery.envelope, queue="gone"))
    result = Result()
    rig.moves.schedule(elsewhere, elsewhere.envelope, 0, result)
    assert isinstance(result.only, Unroutable)


@on(RABBITS)
def test_delayed_copy_says_when_it_is_due(rig: Rig) -> None:
    """Where workers hold them: its eta lies in the future, in protocol 1 inside of the body."""
    rig.moves = open_broker(rig.connection, settings=Settings(hold_retries="worker"))
    for headers, body in (
        ({"task": "t", "id": "1"}, [[], {}, {}]),
        ({}, {"task": "t", "id": "1", "args": [], "kwargs": {}, "retries": 1, "eta": None}),
    ):
        rig.publish(body, headers=headers)
        delivery = rig.receive()
        result = Result()
        rig.moves.schedule(delivery, delivery.envelope, 60, result)
        ack(delivery, result)
        again = rig.receive()
        assert again.envelope.fields()["eta"] is not None
        again.ack()


@pytest.mark.parametrize("rig", ["redis"], indirect=True)
def test_garbage_in_a_list_is_shown_as_what_it_is(rig: Rig) -> None:
    import redis

    client = redis.Redis(connection_pool=rig.connection.default_channel.pool)
    client.lpush("dead_letter", b"\xff\x00 not json", json.dumps({"no": "properties"}))
    bodies = [found.envelope.body for found in rig.moves.browse("dead_letter")]
    assert bodies == [b"\xff\x00 not json", b""]


def test_key_prefix_of_the_connection_is_ours_too(redis_broker: Broker) -> None:
    """With global_keyprefix every key that is touched begins with it."""
    import redis

    connection = Connection(
        redis_broker.broker_url, transport_options={"global_keyprefix": "shop:"}
    )
    channel = connection.channel()
    queue = Queue("work").bind(channel)
    queue.declare()
    connection.Producer().publish([[], {}, {}], routing_key="work", exchange="")
    message = queue.get()
    delivery = Delivery(message, Envelope.received(message, "work"), message.ack)
    moves = open_broker(connection)
    result = Result()
    moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, result)
    ack(delivery, result)
    client = redis.Redis(connection_pool=channel.pool)
    assert client.llen("shop:dead_letter") == 1
    assert all(key.startswith(b"shop:") for key in client.scan_iter())
    assert client.hlen("shop:unacked") == 0
    connection.release()


@pytest.mark.parametrize("rig", ["rabbitmq-classic"], indirect=True)
def test_unencodable_message_does_not_shift_the_confirms(rig: Rig) -> None:
    """A copy that was never sent has no number: the next ones get the answers meant for them."""
    rig.publish([[], {}, {}])
    delivery = rig.receive()
    broken, good = Result(), Result()
    unsendable = replace(delivery.envelope, headers={"task": 2**70})
    rig.moves.dead_letter(delivery, unsendable, "dead_letter", {}, broken)
    assert broken.only is not None
    rig.moves.dead_letter(delivery, delivery.envelope, "dead_letter", {}, good)
    ack(delivery, good)
    assert rig.moves.count("dead_letter") == 1


@pytest.mark.parametrize("rig", ["rabbitmq-classic"], indirect=True)
def test_channel_that_rabbitmq_has_closed_is_not_used_again(rig: Rig) -> None:
    """py-amqp opens it again, without confirms: what is published there never hears of its end."""
    loop = SimpleNamespace(add_reader=lambda *args: None, remove=lambda sock: None)
    publisher = ConfirmingPublisher(rig.connection, loop)
    copy = Envelope(b"[]", "application/json", "utf-8", headers={"id": "1"}, queue="work")
    astray, beside, after = Result(), Result(), Result()
    publisher.publish(copy, "no such exchange", "", astray)

    def prepare() -> None:  # on its way the refusal of the one before is read
        make(publisher.link.connection, "work", {})

    publisher.publish(copy, "", "work", beside, prepare)
    assert astray.only is not None
    assert beside.only is not None
    publisher.publish(copy, "", "work", after)
    publisher.flush(5)
    assert after.only is None
    publisher.link.disconnect(BrokerError("closed"))


@pytest.mark.parametrize("rig", ["rabbitmq-classic"], indirect=True)
def test_settlement_without_a_loop_reaches_a_rabbitmq_short_of_memory_once(
    rig: Rig, rabbitmq_server: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It will read what was sent, from a closed connection as well: a second copy is one more."""
    monkeypatch.setattr(module_of_confirms, "PATIENCE", 0.5)
    publisher = ConfirmingPublisher(rig.connection)
    copy = Envelope(b"[]", "application/json", "utf-8", headers={"id": "1"}, queue="work")
    sent, refused = Result(), Result()
    publisher.link.open()
    states = "[S || [{state, S}] <- rabbit_networking:connection_info_all([state])]."
    rabbitmq_server.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.00001).")
    try:
        eventually(lambda: "running" not in rabbitmq_server.evaluate(states))
        publisher.publish(copy, "", "work", sent)
        assert sent.calls == []
        publisher.publish(copy, "", "work", refused)
        assert "short of memory" in str(refused.only)
        publisher.check()
    finally:
        rabbitmq_server.evaluate("vm_memory_monitor:set_vm_memory_high_watermark(0.4).")

    def confirmed() -> bool:
        publisher.check()
        return bool(sent.calls)

    eventually(confirmed)
    assert sent.only is None
    assert len(rig.lying()) == 1
    publisher.link.disconnect(BrokerError("closed"))
