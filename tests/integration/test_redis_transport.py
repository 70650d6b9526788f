"""Workers on ``redis://`` take through our own transport, unless something speaks against it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import VERSION as KOMBU
from kombu import Connection, Queue
from redis.credentials import CredentialProvider

from celery_resilience.brokers.redis.lease_qos import take_over
from celery_resilience.brokers.redis.leases import LeaseOwner
from celery_resilience.testing.server import EmbeddedServer
from celery_resilience.transport.selection import lets_ours_take
from tests.client import Client
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"

StartWorker = Callable[..., Worker]

#: Nobody maintains it, so it is not among what tests need.
eventlet = pytest.param(
    "eventlet",
    marks=pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed"),
)

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture
def db(redis_broker: Broker) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(str(redis_broker.redis_url)) as made:
        yield made


def stats(client: Client, worker: Worker) -> dict[str, Any]:
    """What *worker* answers to ``inspect stats``."""

    def asked() -> Any:
        return client.inspect("stats", worker.name).get(worker.name)

    answer: dict[str, Any] = eventually(asked, message="stats are answered")
    return answer


def way(client: Client, worker: Worker) -> str:
    """The transport that *worker* says it takes through."""
    return str(stats(client, worker)["resilience"]["redis_transport"])


def waits_in_a_pop(db: redis.Redis) -> bool:
    """Whether a connection waits as kombu's transport does."""
    return any(each["cmd"] == "brpop" for each in db.client_list())


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "gevent", eventlet])
def test_worker_alone_takes_through_ours(
    broker: Broker,
    pool: str,
    client: Client,
    db: redis.Redis,
    redis_server: EmbeddedServer,
    start_worker: StartWorker,
) -> None:
    """After a reconnection too; what anybody reads of it says ``redis``."""
    worker = start_worker(SHOP, broker, pool=pool, env=client.env)
    assert client.value(client.send("flaky", "one", 1))
    eventually(lambda: not waits_in_a_pop(db))  # the reply of remote control is one as well
    told = stats(client, worker)
    assert told["broker"]["transport"] == "redis"
    ours = told["resilience"]
    assert [ours[name] for name in ("enabled", "redis_transport", "why")] == [True, "own", ""]
    redis_server.kill()
    redis_server.start()
    assert client.value(client.send("flaky", "two", 1))
    assert way(client, worker) == "own"
    eventually(lambda: not waits_in_a_pop(db))  # the reply of remote control is one as well
    assert ".> broker:       Redis, through our own transport\n" in worker.log()
    assert "resilient-" not in worker.log()
    assert worker.terminate() == 0


@on_redis
def test_kombus_is_a_setting_away(
    broker: Broker, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    worker = start_worker(SHOP, broker, arguments=["--redis-transport", "kombu"], env=client.env)
    assert client.value(client.send("flaky", "one", 1))
    eventually(lambda: waits_in_a_pop(db))
    assert way(client, worker) == "kombu"
    assert "through kombu's transport: resilience_redis_transport is 'kombu'" in worker.log()
    assert "WARNING/MainProcess] this worker takes" not in worker.log()
    assert worker.terminate() == 0


@pytest.fixture
def without_lindex(broker: Broker, db: redis.Redis) -> Iterator[Broker]:
    """A user who may do what kombu needs and what settles, and may not look into a list."""
    rules = ("~*", "allchannels", "+@all", "-lindex")
    db.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">secret", *rules)
    url = broker.broker_url
    yield replace(broker, broker_url=url.replace("://", "://poor:secret@", 1))
    db.execute_command("ACL", "DELUSER", "poor")


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_right_that_is_missing_stops_no_worker(
    without_lindex: Broker, pool: str, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """It falls back at that connection and says so once; with the right it is ours again."""
    worker = start_worker(SHOP, without_lindex, pool=pool, env=client.env)
    results = [client.send("flaky", f"f-{n}", 1) for n in range(5)]
    for result in results:
        assert client.value(result)
    told = stats(client, worker)["resilience"]
    assert told["redis_transport"] == "kombu"
    assert told["why"] == "Redis refuses LINDEX on other; LINDEX on shop"
    assert worker.log().count("takes its messages through kombu's Redis transport") == 1
    db.execute_command("ACL", "SETUSER", "poor", "+lindex")
    for each in db.client_list():
        if each["user"] == "poor":
            db.client_kill_filter(_id=each["id"])
    assert client.value(client.send("flaky", "after", 1))
    eventually(lambda: way(client, worker) == "own")
    assert client.letters() == []
    assert worker.terminate() == 0


@on_redis
def test_worker_does_not_start_where_the_transport_must_be_ours(
    without_lindex: Broker, client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    arguments = ["--redis-transport", "own"]
    with (
        pytest.raises(AssertionError, match="the worker ended"),
        Worker(SHOP, without_lindex, arguments=arguments, env=client.env, log=log),
    ):
        pass
    assert "resilience_redis_transport is 'own', and this worker can't take" in log.read_text()
    assert "LINDEX on shop" in log.read_text()


@on_redis
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_message_held_in_kombus_way_by_a_dead_worker_is_restored(
    broker: Broker, pool: str, client: Client, db: redis.Redis, start_worker: StartWorker
) -> None:
    """A stock worker, or one on an older version's path, was killed with a message."""
    result = client.send("flaky", "left", 0)
    with Connection(broker.broker_url) as connection:
        queue = connection.SimpleQueue("shop")
        queue.get(timeout=5)
        queue.channel.qos._delivered.clear()  # it gives nothing back: it has died
    assert (db.hlen("unacked"), db.llen("shop")) == (1, 0)
    options = {
        "visibility_timeout": 1, "unacked_restore_interval": 0.5, "unacked_restore_throttle": 1
    }  # fmt: skip
    env = {**client.env, "BROKER_OPTIONS": json.dumps(options)}
    worker = start_worker(SHOP, broker, pool=pool, env=env)
    assert client.value(result)
    assert way(client, worker) == "own"
    assert (db.hlen("unacked"), db.zcard("unacked_index")) == (0, 0)


# Each of kombu's options means what it means there


class CountsUp(CredentialProvider):  # type: ignore[misc]
    """Asked at each connection."""

    asked = 0

    def get_credentials(self) -> tuple[str, str]:
        CountsUp.asked += 1
        return ("rich", "secret")


OPTIONS: dict[str, Any] = {
    "body_encoding": None,
    "deadletter_queue": "undeliverable",
    "sep": ":",
    "unacked_key": "mine",
    "unacked_index_key": "mine_index",
    "unacked_mutex_key": "mine_mutex",
    "unacked_mutex_expire": 5,
    "visibility_timeout": 5,
    "unacked_restore_limit": 5,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "fanout_prefix": False,
    "fanout_patterns": False,
    "global_keyprefix": "{shop}:",
    "socket_timeout": 3,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "socket_keepalive_options": {},
    "queue_order_strategy": "sorted",
    "max_connections": 2,
    "health_check_interval": 1,
    "reauth_check_interval": 1,
    "retry_on_timeout": True,
    "priority_steps": [0, 5],
    "client_name": "shop",
    "polling_interval": 0.01,
}
SENTINELS = {"master_name", "min_other_sentinels", "sentinel_kwargs", "sentinel_fanout_compat"}
#: Where ours does not stand in.
NOT_OURS = {"ack_emulation"}


def test_kombus_options_are_all_known() -> None:
    from kombu.transport.redis import SentinelChannel

    known: Any = SentinelChannel
    assert set(known.from_transport_options) <= {*OPTIONS, *SENTINELS, *NOT_OURS}


def through_ours(url: str, **options: Any) -> Connection:
    connection = Connection(url, transport_options=options)
    lets_ours_take(connection)
    return connection


def take_and_acknowledge(connection: Connection, number: int) -> tuple[list[Any], Any]:
    """What a worker's channel receives, and that channel."""
    channel: Any = connection.channel()
    assert take_over(channel, LeaseOwner())
    got: list[Any] = []
    consumer = connection.Consumer(
        [Queue("a"), Queue("b")], channel, on_message=got.append, auto_declare=False
    )
    consumer.qos(prefetch_count=10)
    consumer.consume()
    while len(got) < number:
        connection.drain_events(timeout=10)
    for message in got:
        message.ack()
    return [json.loads(message.body) for message in got], channel


@pytest.mark.parametrize(
    "option", [each for each in OPTIONS if each != "client_name" or KOMBU >= (5, 6)]
)
def test_option_of_kombus(option: str, redis_broker: Broker, db: redis.Redis) -> None:
    options = {option: OPTIONS[option]}
    with Connection(redis_broker.broker_url, transport_options=dict(options)) as theirs:
        producer = theirs.Producer(auto_declare=False)
        for queue, priority in (("a", 0), ("b", 0), ("a", 9), ("b", 9)):
            producer.publish(
                [queue, priority], exchange="", routing_key=queue, priority=priority,
                serializer="json",
            )  # fmt: skip
    before = sorted(key.decode() for key in db.scan_iter("*"))
    with through_ours(redis_broker.broker_url, **options) as connection:
        got, channel = take_and_acknowledge(connection, 4)
        # Priority 0 comes first in kombu's lists; queues take turns, or one is before the other.
        assert [each[1] for each in got] == [0, 0, 9, 9]
        if option != "queue_order_strategy":
            assert {each[0] for each in got[:2]} == {"a", "b"}
        else:
            assert got == [["a", 0], ["b", 0], ["a", 9], ["b", 9]]
        if option == "client_name":
            names = [each["name"] for each in db.client_list()]
            assert names.count("shop") >= 2  # one looks, one is told
        if option == "global_keyprefix":
            assert all(key.startswith("{shop}:") for key in before)
            assert all(key.startswith(b"{shop}:") for key in db.scan_iter("*"))
        if option == "sep":
            assert "a:9" in before
        let_go = channel.lease_owner.key
    prefix = options.get("global_keyprefix", "")
    assert db.hlen(prefix + let_go) == 0
    for key in before:
        assert not db.exists(key)


@pytest.mark.skipif(KOMBU < (5, 6), reason="kombu asks no provider before 5.6")
@pytest.mark.parametrize("how", ["credential_provider", "url"])
def test_credentials_come_from_a_provider(
    how: str, redis_server: EmbeddedServer, redis_broker: Broker, db: redis.Redis
) -> None:
    """It is asked for each connection of ours as for kombu's."""
    db.execute_command("ACL", "SETUSER", "rich", "reset", "on", ">secret", "~*", "&*", "+@all")
    provider = f"{__name__}.CountsUp"
    with Connection(redis_broker.broker_url) as theirs:
        producer = theirs.Producer(auto_declare=False)
        producer.publish(1, exchange="", routing_key="a", serializer="json")
    url = redis_broker.broker_url
    if how == "url":
        connection = Connection(f"{url}&credential_provider={provider}")
    else:
        connection = Connection(url, credential_provider=provider)
    lets_ours_take(connection)
    CountsUp.asked = 0
    with connection:
        assert take_and_acknowledge(connection, 1)[0] == [1]
        mine = [each for each in db.client_list() if each["user"] == "rich"]
        assert len(mine) >= 2
    assert CountsUp.asked >= 2
    db.execute_command("ACL", "DELUSER", "rich")
