"""The Redis transport on a real server, as a plain kombu consumer sees it."""

from __future__ import annotations

import inspect
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

import celery_resilience  # noqa: F401  (it names the transport to kombu)
from celery_resilience.brokers.redis.lease_qos import take_over
from celery_resilience.brokers.redis.leases import LeaseOwner, Leases
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.policy.decision import Reason
from celery_resilience.testing.server import EmbeddedServer
from celery_resilience.transport import fetching, timing
from tests.servers import eventually
from tests.worker import Broker

STEPS = [0, 3, 6, 9]


@pytest.fixture
def db(redis_broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_broker.redis_url) as client:
        yield client


class Reader:
    """A consumer of some queues, in this thread."""

    def __init__(self, url: str, *queues: str, prefetch: int = 10, **options: Any) -> None:
        no_ack = options.pop("no_ack", False)
        self.connection = Connection(url, transport_options=options)
        self.channel: Any = self.connection.channel()
        self.got: list[Any] = []
        queues_ = [Queue(name) for name in queues]
        self.consumer = Consumer(
            self.channel, queues_, on_message=self.got.append, no_ack=no_ack, auto_declare=False
        )
        self.consumer.qos(prefetch_count=prefetch)

    def read(self, count: int, timeout: float = 10) -> list[Any]:
        """The next *count* messages."""
        wanted = len(self.got) + count
        while len(self.got) < wanted:
            self.connection.drain_events(timeout=timeout)
        return self.got[wanted - count :]

    def nothing(self, timeout: float = 0.2) -> None:
        """There is nothing to read for that long."""
        before = len(self.got)
        with suppress(socket.timeout):
            while len(self.got) == before:
                self.connection.drain_events(timeout=timeout)
        assert len(self.got) == before

    def __enter__(self) -> Reader:
        self.consumer.consume()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.release()


@pytest.fixture
def reader(redis_broker: Broker) -> Iterator[Callable[..., Reader]]:
    """``reader("a", "b", prefetch=3)``: a consumer through our transport that has begun."""
    made: list[Reader] = []

    def make(*queues: str, url: str = f"resilient-{redis_broker.broker_url}", **kw: Any) -> Reader:
        made.append(Reader(url, *queues, **kw))
        return made[-1].__enter__()

    yield make
    for each in made:
        each.connection.release()


@pytest.fixture
def put(redis_broker: Broker) -> Iterator[Callable[..., None]]:
    """``put("a", 1, priority=3)``: publish as a stock producer does."""
    with Connection(redis_broker.broker_url) as connection:
        producer = connection.Producer(auto_declare=False)
        yield lambda queue, body, **kw: producer.publish(
            body, exchange="", routing_key=queue, serializer="json", **kw
        )


def bodies(messages: list[Any]) -> list[Any]:
    return [json.loads(message.body) for message in messages]


def held(db: redis.Redis, owner: LeaseOwner) -> Any:
    return db.hgetall(owner.key)


# What is taken is held, in the same step


def test_fetched_message_is_held_as_kombu_holds_it(reader, put, db) -> None:
    """A stock worker's sweep gives back what a consumer without a holder has left."""
    consumer = reader("a")
    put("a", 1)
    published = json.loads(db.lindex("a", 0))["properties"]["delivery_tag"]
    (message,) = consumer.read(1)
    assert message.delivery_tag != published, "a tag of its own"
    assert db.zrange("unacked_index", 0, -1) == [message.delivery_tag.encode()]
    payload, exchange, queue = json.loads(db.hget("unacked", message.delivery_tag))
    assert (payload["body"], exchange, queue) == (message._raw["body"], "", "a")
    consumer.channel.qos.restore_visible(num=10)  # too early
    assert db.llen("a") == 0
    db.zadd("unacked_index", {message.delivery_tag: 0})
    consumer.channel.qos.restore_by_tag(message.delivery_tag)
    assert db.llen("a") == 1
    assert db.hlen("unacked") == db.zcard("unacked_index") == 0


def test_holder_holds_its_own(reader, put, db) -> None:
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    put("a", 1, priority=4)
    payload = db.lindex("a\x06\x163", 0)
    (message,) = consumer.read(1)
    assert held(db, owner) == {message.delivery_tag.encode(): b"a\x06\x163\n" + payload}
    assert db.exists("unacked", "unacked_index") == 0
    message.ack()
    consumer.nothing(0.05)  # what is acknowledged is let go with the next look
    assert held(db, owner) == {}
    put("a", 2)
    consumer.read(1)[0].reject(requeue=True)
    assert held(db, owner) == {}
    (again,) = consumer.read(1)
    assert again.headers["redelivered"] is True


@contextmanager
def in_a_loop(
    broker: Broker, on_message: Callable[[Any], object], holder: Any = None
) -> Iterator[tuple[Any, Iterator[None]]]:
    """A channel of ours that consumes ``a``, for *holder* if there is one, and its event loop."""
    hub = Hub()
    with Connection(f"resilient-{broker.broker_url}") as connection:
        channel: Any = connection.channel()
        if holder is not None:
            take_over(channel, holder)
        consumer = Consumer(channel, [Queue("a")], on_message=on_message, auto_declare=False)
        consumer.qos(prefetch_count=4)
        connection.register_with_event_loop(hub)
        consumer.consume()
        yield channel, hub.create_loop()
    hub.close()


def test_loop_delivers_nothing_when_the_pool_may_have_had_its_turn(
    redis_broker: Broker, put
) -> None:
    """What runs at each tick runs in any order: a pool that came first would wait for the next."""
    seen: list[Any] = []

    def on_message(message: Any) -> None:
        seen.append([frame.function for frame in inspect.stack()])
        message.ack()

    with in_a_loop(redis_broker, on_message) as (_, loop):
        for n in range(30):
            put("a", n)
        while len(seen) < 30:
            next(loop)
        assert not [stack for stack in seen if "on_poll_start" in stack]


def test_answer_that_waits_for_a_busy_loop_is_taken_in(redis_broker: Broker, put) -> None:
    """To see whether it is here reads it: its socket has nothing more to tell."""
    seen: list[Any] = []
    with in_a_loop(redis_broker, seen.append) as (channel, loop):
        put("a", 1)
        channel.fetch_soon()
        assert channel.fetch()
        assert select.select([channel.fetcher.sock], [], [], 5)[0]
        channel.fetcher._since -= fetching.ANSWER + 1
        for _ in range(3):
            next(loop)
        assert len(seen) == 1


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_question_that_gets_no_answer_is_given_up(redis_broker: Broker, put, db, how) -> None:
    """At once where somebody here has closed the connection; what it lets go is not forgotten."""
    seen: list[Any] = []
    owner = LeaseOwner()
    with in_a_loop(redis_broker, seen.append, owner) as (channel, loop), ExitStack() as stack:
        put("a", 1)
        while not seen:
            next(loop)
        while channel.fetcher.asking:
            next(loop)
        seen[0].ack()
        db.client_pause(60_000, all=False)
        stack.callback(db.client_unpause)
        channel.fetch_soon()
        assert channel.fetch()
        assert channel.acknowledged == 0
        if how == "closed":
            channel.client.connection.disconnect()
        else:
            channel.fetcher._since -= fetching.ANSWER + 1
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            list(islice(loop, 3))
        assert time.monotonic() - began < fetching.ANSWER / 2
        assert channel.acknowledged == 1
        assert not channel.fetcher.asking
    assert held(db, owner) == {}


def test_fetched_message_that_was_not_delivered_goes_back(reader, put, db) -> None:
    """In the order it was in, when the consumer is cancelled, or the connection closed."""
    for ending in ("cancel", "close"):
        consumer = reader("a")
        for n in range(6):
            put("a", n)
        first = consumer.read(1)
        assert bodies(first) == [0]
        assert db.hlen("unacked") == 6, "as many as may be prefetched"
        first[0].ack()
        if ending == "cancel":
            consumer.consumer.cancel()
        else:
            consumer.connection.release()
        assert db.hlen("unacked") == 0
        assert bodies(reader("a").read(5)) == [1, 2, 3, 4, 5]
        db.flushdb()


def test_prefetch_count_is_kept(reader, put, db) -> None:
    consumer = reader("a", "b", prefetch=3)
    for n in range(20):
        put("ab"[n % 2], n)
    seen: list[Any] = []
    while len(seen) < 20:
        batch = consumer.read(min(3, 20 - len(seen)))
        consumer.nothing(0.02)
        assert db.hlen("unacked") == len(batch)
        seen += bodies(batch)
        for message in batch:
            message.ack()
    assert sorted(seen) == list(range(20))


def test_messages_without_acks_are_not_held(reader, put, db) -> None:
    consumer = reader("a", no_ack=True)
    put("a", 1)
    assert bodies(consumer.read(1)) == [1]
    assert db.exists("unacked", "unacked_index") == 0


# In which order


def test_priorities_first_then_queues_in_turn(reader, put) -> None:
    for n in range(4):
        put("a", f"a{n}", priority=3)
        put("b", f"b{n}", priority=3)
    put("b", "urgent", priority=0)
    put("a", "idle", priority=9)
    got = bodies(reader("a", "b").read(10))
    assert got[0] == "urgent"
    assert got[-1] == "idle"
    assert sorted(got[1:3]) == ["a0", "b0"]
    assert sorted(got[7:9]) == ["a3", "b3"]


@pytest.mark.parametrize("steps", [STEPS, [0]])
def test_queues_may_be_of_any_number(reader, put, db, steps) -> None:
    """A script's calls have room for some thousand keys."""
    names = [f"q{n}" for n in range(3000)]
    consumer = reader(*names, priority_steps=steps)
    put("q1", "first")
    put("q2999", "last", priority=steps[-1])
    assert sorted(bodies(consumer.read(2))) == ["first", "last"]
    put("q1500", "wakes")  # all of them are watched
    assert bodies(consumer.read(1, timeout=fetching.SAFETY / 2)) == ["wakes"]
    for message in consumer.got:
        message.ack()
    assert db.hlen("unacked") == 0


def test_order_of_the_queues_can_be_fixed(reader, put) -> None:
    for n in range(3):
        put("b", f"b{n}")
        put("a", f"a{n}")
    consumer = reader("a", "b", queue_order_strategy="sorted")
    assert bodies(consumer.read(6)) == ["a0", "a1", "a2", "b0", "b1", "b2"]


# Waking up


@pytest.mark.parametrize("protocol", [2, 3])
def test_message_in_any_list_wakes_the_reader(
    reader, redis_broker, put, monkeypatch, protocol
) -> None:
    """4 queues x 4 priorities, and nothing is looked at regularly."""
    monkeypatch.setattr(fetching, "SAFETY", 600.0)
    url = f"resilient-{redis_broker.broker_url}&protocol={protocol}"
    consumer = reader("a", "b", "c", "d", url=url)
    consumer.nothing()
    for queue in "abcd":
        for step in STEPS:
            sender = threading.Timer(0.02, put, (queue, step), {"priority": step})
            sender.start()
            (message,) = consumer.read(1)
            sender.join()
            assert bodies([message]) == [step]
            message.ack()


def test_idle_reader_asks_nothing(reader, db) -> None:
    consumer = reader("a", "b", "c", "d")
    consumer.nothing()
    consumer.channel.fetcher.notifications.sock.getpeername()  # it is there
    asked = lambda: db.info("commandstats")["cmdstat_evalsha"]["calls"]  # noqa: E731
    before = asked()
    consumer.nothing(1.5)
    assert asked() - before <= 3, "a look for safety's sake, and kombu's sweep"


def test_queue_that_is_added_wakes_too(reader, put, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "SAFETY", 600.0)
    consumer = reader("a")
    consumer.nothing()
    consumer.consumer.add_queue(Queue("b"))
    consumer.consumer.consume()
    consumer.nothing()
    put("b", 1)
    assert bodies(consumer.read(1)) == [1]
    consumer.consumer.cancel_by_queue("b")
    put("b", 2)
    consumer.nothing()


def test_server_that_tells_nothing_is_asked_regularly(
    reader, redis_broker, redis_server, put, db, caplog
) -> None:
    # Redis 6.2 can allow a subcommand, and not forbid one.
    rights = ["+@all", "-client", "+client|id", "+client|setname"]
    db.acl_setuser("untold", enabled=True, passwords=["+secret"], commands=rights,
                   keys=["*"], channels=["*"])  # fmt: skip
    path = urlsplit(redis_broker.broker_url)
    url = f"resilient-redis+socket://untold:secret@{path.path}?{path.query}"
    consumer = reader("a", url=url)
    consumer.nothing()
    put("a", 1)
    assert bodies(consumer.read(1)) == [1]
    told = [record for record in caplog.records if "CLIENT TRACKING" in record.message]
    assert len(told) == 1
    consumer.nothing()

    def calls(command: str) -> int:
        return int(db.info("commandstats")[f"cmdstat_{command}"]["calls"])

    scripts, looks = calls("evalsha"), calls("exists")
    while calls("exists") < looks + 20:
        consumer.nothing()
    assert calls("evalsha") < scripts + 10, "who finds nothing runs no script"
    db.acl_deluser("untold")


def test_lost_wake_up_is_replaced(reader, put, db, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "SAFETY", 600.0)
    consumer = reader("a")
    consumer.nothing()
    sock = consumer.channel.fetcher.notifications.sock
    ours = consumer.channel.fetcher.notifications.connection
    number = next(c["redir"] for c in db.client_list() if int(c["redir"]) > 0)
    db.client_kill_filter(_id=number)
    consumer.nothing()
    assert consumer.channel.fetcher.notifications.connection not in (None, ours)
    assert sock.fileno() == -1
    put("a", 1)
    assert bodies(consumer.read(1)) == [1]


# Trouble


@pytest.mark.parametrize("how", ["disconnected", "reconnected", "killed"])
def test_next_message_comes_at_once_though_the_socket_was_replaced(
    reader, put, db, monkeypatch, how
) -> None:
    monkeypatch.setattr(fetching, "SAFETY", 60.0)
    one = reader("work")
    one.nothing()
    connection = one.channel.client.connection
    if how == "killed":
        db.client_kill_filter(_type="normal", skipme=True)
    else:
        connection.disconnect()
    if how == "reconnected":
        connection.connect()
    put("work", "one")
    assert bodies(one.read(1, timeout=20)) == ["one"]
    put("work", "another")
    assert bodies(one.read(1, timeout=20)) == ["another"]


def test_garbage_is_a_dead_letter(reader, put, db) -> None:
    garbage = [b"\xff\x00", b"[]", b"12", b"{", b'{"body": 1}', b'{"properties": []}',
               b'{"properties": {}, "body": "x", "headers": [1]}',
               b'{"properties": {"body_encoding": "rot13"}, "body": "x"}']  # fmt: skip
    consumer = reader("a", prefetch=0)
    for owner in (None, LeaseOwner()):
        if owner is not None:
            assert take_over(consumer.channel, owner)
        db.lpush("a", *garbage)
        put("a", "good")
        assert bodies(consumer.read(1)) == ["good"]
        letters = [
            DeadLetter.from_envelope(Envelope.from_wire(json.loads(raw), "dead_letter"))
            for raw in reversed(db.lrange("dead_letter", 0, -1))
        ]
        assert [letter.envelope.body for letter in letters] == garbage
        assert {(letter.reason, letter.envelope.queue) for letter in letters} == {
            (Reason.UNDECODABLE, "a")
        }
        assert db.hlen("unacked" if owner is None else owner.key) == 1
        db.flushdb()


def test_worker_may_have_its_own_idea_of_garbage(reader, db) -> None:
    consumer = reader("a")
    seen: list[Any] = []
    consumer.channel.on_undecodable = seen.append
    db.lpush("a", b"nonsense")
    consumer.nothing()
    (taken,) = seen
    assert (taken.payload, taken.queue) == (b"nonsense", "a")
    assert db.hkeys("unacked") == [taken.tag.encode()], "still held"


def test_scripts_that_the_server_has_forgotten_are_sent_again(reader, put, db) -> None:
    consumer = reader("a")
    for n in range(2):
        put("a", n)
        assert bodies(consumer.read(1)) == [n]
        db.script_flush()


def test_server_without_memory_can_be_emptied(reader, put, db) -> None:
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    for n in range(3):
        put("a", n)
    db.lpush("a", b"garbage")
    db.config_set("maxmemory", 1)
    try:
        got = consumer.read(3)
        for message in got:
            message.ack()
        consumer.nothing(0.05)
    finally:
        db.config_set("maxmemory", 0)
    assert bodies(got) == [0, 1, 2]
    assert db.llen("dead_letter") == 1
    assert db.exists("a", owner.key) == 0


def test_server_that_refuses_is_asked_again(reader, put, db, caplog, monkeypatch) -> None:
    monkeypatch.setattr(timing, "_REFUSED", 0.05)
    consumer = reader("a")
    consumer.nothing()
    db.set("unacked", "no hash")
    put("a", 1)
    consumer.nothing()
    assert db.llen("a") == 1, "nothing is taken that can't be held"
    db.delete("unacked")
    assert bodies(consumer.read(1)) == [1]
    assert len([r for r in caplog.records if "refuses" in r.message]) == 1


@pytest.mark.parametrize("command", ["EXISTS", "HDEL", "LINDEX", "HSET", "RPOP"])
def test_take_that_may_not_do_all_of_it_does_nothing(
    reader, put, db, caplog, monkeypatch, command
) -> None:
    """However often it is tried; the log names the command and the key."""
    monkeypatch.setattr(timing, "_REFUSED", 0.02)
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    put("a", 1)
    db.execute_command("ACL", "SETUSER", "default", f"-{command.lower()}")
    try:
        consumer.nothing(0.1)
    finally:
        db.execute_command("ACL", "SETUSER", "default", "+@all")
    assert (db.llen("a"), db.hlen(owner.key)) == (1, 0)
    assert command.lower() in caplog.text.lower()
    assert bodies(consumer.read(1)) == [1]
    assert (db.llen("a"), db.hlen(owner.key)) == (0, 1)


def test_takes_that_can_not_be_counted_go_on(reader, put, db, caplog) -> None:
    """It is said once what that costs."""
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    db.set("celery_resilience:takes", "somebody's")
    for n in range(2):
        put("a", n)
        assert bodies(consumer.read(1)) == [n]
    assert len([r for r in caplog.records if "can't be counted" in r.message]) == 1


def test_consumer_is_known_to_the_others(reader, put, db) -> None:
    """Though its lease was forgotten: it may die before it says again that it is alive."""
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    for n in (1, 2):
        db.delete("celery_resilience:workers")
        if n == 2:
            db.zadd("celery_resilience:workers", {owner.id: 1.0})
            assert Leases(db, "").forget(owner.id, if_dead=True)
        put("a", n)
        (message,) = consumer.read(1)
        assert db.zscore("celery_resilience:workers", owner.id) is not None
        message.ack()
        consumer.nothing(0.05)
        assert abs(int(db.hget("celery_resilience:takes", owner.id))) == n


def test_key_that_is_no_list_is_in_nobodys_way(reader, put, db) -> None:
    consumer = reader("a", "b")
    db.set("a", "somebody's")
    put("b", 1)
    assert bodies(consumer.read(1)) == [1]


def test_acknowledgements_that_were_not_sent_are_sent_by_the_next_connection(
    reader, put, db
) -> None:
    owner = LeaseOwner()
    first = reader("a")
    assert take_over(first.channel, owner)
    put("a", 1)
    (message,) = first.read(1)
    owner.unsent.append(message.delivery_tag)
    assert take_over(reader("a").channel, owner)
    assert held(db, owner) == {}
    assert owner.unsent == []


@pytest.mark.parametrize("at_once", [True, False])
def test_refused_ack_is_repeated_when_it_is_allowed(reader, put, db, at_once) -> None:
    """It is done, and must not come back because the server refuses to write for a while."""
    consumer, owner = reader("a"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    put("a", 1)
    (message,) = consumer.read(1)
    if at_once:  # as pools do whose threads acknowledge
        consumer.channel.ack_soon = lambda tag: False
    db.config_set("min-replicas-to-write", 1)
    try:
        message.ack()
        consumer.channel.close()
    finally:
        db.config_set("min-replicas-to-write", 0)
    assert owner.unsent == [message.delivery_tag]
    Leases(db, "").ack_unsent(owner)
    assert not db.exists(owner.key)


# Beside others


def test_every_key_has_the_prefix(reader, redis_broker, db) -> None:
    options = {"global_keyprefix": "here:"}
    consumer = reader("a", **options)
    with Connection(redis_broker.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        for n in range(3):
            producer.publish(n, routing_key="a", exchange="")
    db.lpush("here:a", b"garbage")
    got = consumer.read(3)
    consumer.nothing()
    assert {key.decode() for key in db.scan_iter()} == {
        "here:unacked", "here:unacked_index", "here:dead_letter",
    }  # fmt: skip
    owner = LeaseOwner()
    for message in got:
        message.ack()
    take_over(consumer.channel, owner)
    db.lpush("here:a", json.dumps({"properties": {"delivery_info": {}}, "body": ""}))
    consumer.read(1)
    (value,) = db.hvals(f"here:{owner.key}")
    assert value.startswith(b"a\n")


def test_prefix_beyond_ascii_is_left_out_of_what_is_held(reader, db) -> None:
    """What is given back has to lie where it is read."""
    consumer, owner = reader("a", global_keyprefix="größe:"), LeaseOwner()
    assert take_over(consumer.channel, owner)
    db.lpush("größe:a", json.dumps({"properties": {"delivery_info": {}}, "body": ""}))
    consumer.read(1)
    assert Leases(db, "größe:").requeue(owner.id) == 1
    assert db.llen("größe:a") == 1


def test_stock_consumers_share_the_queue(reader, redis_broker, put, db) -> None:
    ours, stock = reader("a", prefetch=2), reader("a", prefetch=2, url=redis_broker.broker_url)
    for n in range(40):
        put("a", n)

    def both() -> bool:
        for each in (ours, stock):
            with suppress(socket.timeout):
                each.connection.drain_events(timeout=0.02)
            for message in each.got:
                if not message.acknowledged:
                    message.ack()
        return len(ours.got) + len(stock.got) == 40

    eventually(both, every=0)
    assert sorted(bodies(ours.got) + bodies(stock.got)) == list(range(40))
    assert ours.got
    assert stock.got
    assert db.exists("a", "unacked", "unacked_index") == 0


def test_fanout(redis_broker) -> None:
    url = f"resilient-{redis_broker.broker_url}"
    exchange = Exchange("news", type="fanout")
    with Connection(url) as connection, Connection(redis_broker.broker_url) as stock:
        seen: list[tuple[str, Any]] = []
        for who, each in (("ours", connection), ("stock", stock)):
            queue = Queue(f"news-{who}", exchange, auto_delete=True)
            Consumer(
                each.channel(), [queue], no_ack=True,
                on_message=lambda message, who=who: seen.append((who, json.loads(message.body))),
            ).consume()  # fmt: skip

        def told() -> bool:
            for each in (connection, stock):
                with suppress(socket.timeout):
                    each.drain_events(timeout=0.05)
            return {("ours", 1), ("stock", 1)} <= set(seen)

        def publish_and_listen() -> bool:
            for each in (connection, stock):
                each.Producer(exchange=exchange, serializer="json").publish(1)
            return told()

        eventually(publish_and_listen)


@pytest.mark.parametrize("scheme", ["", "resilient-"])
def test_requeued_message_of_a_fanout_queue_is_read(redis_broker, db, scheme) -> None:
    """A retry belongs to the one queue that its message came from, and not to the exchange."""
    got: list[Any] = []
    mine = Queue("mine", Exchange("everyone", "fanout"))
    with Connection(f"{scheme}{redis_broker.broker_url}") as connection:
        channel: Any = connection.channel()
        assert take_over(channel, LeaseOwner())
        consumer = Consumer(channel, [mine], on_message=got.append)
        consumer.qos(prefetch_count=10)
        with consumer:
            db.lpush("mine", json.dumps({"properties": {"delivery_tag": "1", "delivery_info": {}}}))
            while not got:
                connection.drain_events(timeout=5)
            got.pop().ack()
            connection.Producer(exchange=mine.exchange).publish(2, serializer="json")
            while not got:
                connection.drain_events(timeout=5)
    assert bodies(got) == [2]


def test_basic_get_and_purge_and_size(redis_broker, put) -> None:
    with Connection(f"resilient-{redis_broker.broker_url}") as connection:
        queue = Queue("a", channel=connection.channel())
        queue.declare()
        for n in range(3):
            put("a", n, priority=n * 3)
        assert queue.queue_declare(passive=True).message_count == 3
        message = queue.get()
        assert json.loads(message.body) == 0
        message.ack()
        assert queue.purge() == 2
        assert queue.get() is None


def test_server_comes_back_with_everything(
    redis_broker: Broker, redis_server: EmbeddedServer, put
) -> None:
    with Reader(f"resilient-{redis_broker.broker_url}", "a") as consumer:
        put("a", 1)
        (message,) = consumer.read(1)
        redis_server.kill()
        with pytest.raises(consumer.connection.recoverable_connection_errors):
            consumer.nothing(10)
        redis_server.start()
        put("a", 2)
        assert bodies(consumer.read(1)) == [2], "the same channel heals itself"
        message.ack()


def test_consumer_cancelled_in_an_outage_hears_of_it_and_consumes_again(
    redis_broker: Broker, redis_server: EmbeddedServer, put
) -> None:
    """A worker that pauses: half cancelled, it would never take a message again."""
    with Reader(f"resilient-{redis_broker.broker_url}", "a") as consumer:
        consumer.nothing()
        consumer.channel.fetch_soon()
        assert consumer.channel.fetch()  # the answer is on its way
        redis_server.kill()
        consumer.consumer.cancel()
        redis_server.start()
        put("a", 1)
        consumer.consumer.consume()
        with pytest.raises(consumer.connection.recoverable_connection_errors):
            consumer.read(1)
        (message,) = consumer.read(1)
        message.ack()
        assert bodies([message]) == [1]
