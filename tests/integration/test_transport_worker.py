"""The Redis transport under real workers: remote control, reconnections, TLS, Sentinel."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.sentinel
from celery import VERSION

from celery_resilience.policy.decision import Reason
from celery_resilience.testing.server import EmbeddedServer, leashed
from tests.client import Client
from tests.conftest import missing
from tests.servers import eventually
from tests.worker import Broker, Worker

SHOP = "tests.apps.shop"
POOLS = ["prefork", "threads", "solo", "gevent"]

StartWorker = Callable[..., Worker]

ours = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@ours
@pytest.mark.parametrize("pool", POOLS)
def test_remote_control(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """ping, inspect, revoke, and consumers that are added and cancelled while it runs."""
    worker = start_worker(SHOP, broker, pool=pool, queues="shop", env=client.env)
    control = client.app.control

    def answer(method: str, **arguments: Any) -> Any:
        def asked() -> Any:
            replies = control.broadcast(method, arguments=arguments, reply=True, timeout=2, limit=1)
            return replies and replies[0].get(worker.name)

        return eventually(asked, message=f"{method} is answered")

    assert answer("ping") == {"ok": "pong"}
    assert [queue["name"] for queue in answer("active_queues")] == ["shop"]

    client.send("flaky", "other", 0, queue="other")
    assert "ok" in answer("add_consumer", queue="other")
    eventually(lambda: client.executions()["other"] == 1)

    assert "ok" in answer("cancel_consumer", queue="other")
    eventually(lambda: [queue["name"] for queue in answer("active_queues")] == ["shop"])
    client.send("flaky", "left alone", 0, queue="other")

    revoked = client.app.signature(f"{SHOP}.flaky", ("revoked", 0), countdown=2).apply_async()
    assert "ok" in answer("revoke", task_id=revoked.id)
    assert client.value(client.send("flaky", "after", 1))
    eventually(lambda: client.state(revoked) == "REVOKED")
    assert (client.executions()["revoked"], client.executions()["left"]) == (0, 0)
    assert client.count("other") == 1
    assert worker.terminate() == 0


@ours
@pytest.mark.skipif(VERSION < (5, 6), reason="worker_disable_prefetch came with Celery 5.6")
def test_worker_without_prefetch_leaves_what_it_cannot_run(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    start_worker(SHOP, broker, concurrency=2, env=client.env, arguments=["--disable-prefetch"])
    gate = client.record.with_name("gate")
    held = [client.send("waits", f"w-{n}", str(gate)) for n in range(2)]
    eventually(lambda: len(client.executions()) == 2)
    results = [client.send("flaky", f"flaky-{n}", 0) for n in range(6)]
    client.app.control.ping(timeout=1)  # it has had time to take more, and its loop is alive
    assert client.count("shop") == 6
    gate.touch()
    for result in held + results:
        assert client.value(result)


@ours
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_burst_spreads_over_the_idle_workers(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """Tasks that become visible at once, as due retries do: each worker takes what it can begin."""
    gate = client.record.with_name("gate")
    workers = [start_worker(SHOP, broker, pool=pool, env=client.env) for _ in range(2)]
    for number in range(8):  # quick ones: both have run some
        assert client.value(client.send("flaky", f"quick-{number}", 0))
    results = [client.send("waits", f"w-{n}", str(gate), queue="hidden") for n in range(6)]
    with redis.Redis.from_url(broker.redis_url) as db:
        eventually(lambda: db.llen("hidden") == 6)
        time.sleep(0.2)  # who has just been quick takes some more
        db.rename("hidden", "shop")
    names = [worker.name for worker in workers]

    def shares() -> list[int]:
        return sorted(map(len, client.inspect("active", *names).values()))

    eventually(lambda: shares() == [2, 2], message="each worker runs two")
    assert client.count("shop") == 2  # nobody has taken what it can't begin
    gate.touch()
    for result in results:
        assert client.value(result)


@ours
@pytest.mark.parametrize("multiplier", ["1", "4"])
def test_worker_takes_what_its_pool_can_begin_whatever_size_that_has(
    broker: Broker, multiplier: str, client: Client, start_worker: StartWorker
) -> None:
    """It grows and shrinks by remote control or by an autoscaler; what waits for its ETA takes no
    slot."""
    arguments = ["--prefetch-multiplier", multiplier]
    options: dict[str, Any] = {"concurrency": 1, "env": client.env}
    worker = start_worker(SHOP, broker, queues="shop", arguments=arguments, **options)
    arguments = [*arguments, "--autoscale", "2,1"]
    scaled = start_worker(SHOP, broker, queues="other", arguments=arguments, **options)

    def tell(whom: Worker, method: str, **arguments: Any) -> None:
        (reply,) = client.app.control.broadcast(
            method, arguments=arguments, destination=[whom.name], reply=True, timeout=10, limit=1
        )
        assert "ok" in reply[whom.name]

    def number(command: str, whom: Worker) -> int:
        return len(client.inspect(command, whom.name)[whom.name])

    def processes() -> int:
        return len(client.inspect("stats", worker.name)[worker.name]["pool"]["processes"])

    def run(whom: Worker, queue: str, slots: int, waiting: int) -> None:
        eventually(lambda: number("active", whom) == slots, message=f"{slots} run")
        assert number("reserved", whom) == 0, "none waits for a slot"
        assert client.count(queue) == waiting

    for n in range(2):
        client.send("opens", f"later-{n}", "", countdown=600)
    eventually(lambda: number("scheduled", worker) == 2, message="they wait in the worker")
    gate = client.record.with_name("gate")
    results = [client.send("opens", f"w-{n}", str(gate)) for n in range(6)]
    results += [client.send("opens", f"s-{n}", str(gate), queue="other") for n in range(6)]
    run(worker, "shop", 1, 5)
    run(scaled, "other", 2, 4)
    tell(worker, "pool_grow", n=2)
    tell(scaled, "autoscale", max=3, min=1)
    run(worker, "shop", 3, 3)
    run(scaled, "other", 3, 3)
    gate.touch()
    for result in results:
        assert client.value(result)
    time.sleep(0.2)  # who has just been quick takes some more
    tell(worker, "pool_shrink", n=2)
    eventually(lambda: processes() == 1, message="the pool shrinks")
    gate = client.record.with_name("another-gate")
    results = [client.send("opens", f"a-{n}", str(gate)) for n in range(4)]
    run(worker, "shop", 1, 3)
    gate.touch()
    for result in results:
        assert client.value(result)


@ours
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_killed_server_is_found_again(
    broker: Broker,
    pool: str,
    client: Client,
    redis_server: EmbeddedServer,
    start_worker: StartWorker,
) -> None:
    """Twice, under load: every body runs (its result is lost with the server), workers stay up."""
    workers = [start_worker(SHOP, broker, pool=pool, env=client.env) for _ in range(2)]
    names = [f"t-{n}" for n in range(120)]
    for name in names:
        client.send("flaky", name, 0)
    for done in (20, 60):
        eventually(lambda done=done: len(client.lines()) >= done, every=0.005)
        redis_server.kill()
        redis_server.start()
    eventually(lambda: set(client.executions()) == set(names), message="every body runs")
    with redis.Redis.from_url(broker.redis_url) as db:
        held = lambda: list(db.scan_iter("celery_resilience:held:*"))  # noqa: E731
        eventually(lambda: db.llen("shop") == 0 and not held(), message="nothing is left over")
    for worker in workers:
        assert worker.terminate() == 0


@ours
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_killed_worker_takes_nothing_along(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    """Killed with a full buffer, twice; what it held is run by the next."""
    env = {**client.env, "LEASE": "2"}
    names = [f"t-{n}" for n in range(60)]
    results = [client.send("slow", name, 0.02) for name in names]
    for done in (5, 25):
        worker = start_worker(SHOP, broker, pool=pool, env=env)
        eventually(lambda done=done: len(client.lines()) >= done, every=0.005)
        worker.kill()
    worker = start_worker(SHOP, broker, pool=pool, env=env)
    for result, name in zip(results, names, strict=True):
        assert client.value(result) == name
    assert worker.terminate() == 0
    assert client.letters() == []
    with redis.Redis.from_url(broker.redis_url) as db:
        assert list(db.scan_iter("celery_resilience:held:*")) == []
        assert db.llen("shop") == 0


@ours
def test_body_in_the_workers_own_process_is_over(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Of what was taken with the task that kills the worker, what has run does not run again."""
    over = [client.send("slow", f"over-{n}", 0.02) for n in range(3)]
    left = [client.send("kills_worker", "killer"), client.send("slow", "left")]
    assert start_worker(SHOP, broker, pool="solo", env=client.env).wait() != 0
    with redis.Redis.from_url(broker.redis_url) as db:
        keys = db.scan_iter("celery_resilience:held:*")
        lies = [payload for key in keys for payload in db.hvals(key)] + db.lrange("shop", 0, -1)
    assert [result.id in b"".join(lies).decode() for result in over] == [False] * 3
    assert [result.id in b"".join(lies).decode() for result in left] == [True] * 2


@ours
@pytest.mark.parametrize("pool", POOLS)
def test_garbage_does_not_stop_a_worker(
    broker: Broker, pool: str, client: Client, start_worker: StartWorker
) -> None:
    start_worker(SHOP, broker, pool=pool, env=client.env)
    garbage = [b"\xff", b"[]", b'{"body": 1}', b'{"properties": {"body_encoding": "?"}, "body": 1}']
    with redis.Redis.from_url(broker.redis_url) as db:
        db.lpush("shop", *garbage)
    assert client.value(client.send("flaky", "good", 1))
    eventually(lambda: client.count("dead_letter") == len(garbage))
    letters = client.letters()
    assert {letter.envelope.body for letter in letters} == set(garbage)
    assert {(each.reason, each.envelope.queue) for each in letters} == {
        (Reason.UNDECODABLE, "shop")
    }


@ours
def test_two_apps_in_one_database_keep_apart(
    broker: Broker, client: Client, start_worker: StartWorker
) -> None:
    """Each by its key prefix; nothing of one is seen by the other."""
    env = {**client.env, "BROKER_OPTIONS": '{"global_keyprefix": "theirs:"}'}
    start_worker(SHOP, broker, env=env)
    client.send("flaky", "ours", 0)
    client.app.conf.broker_transport_options = {"global_keyprefix": "theirs:"}
    client.app.pool.force_close_all()
    client.app.__dict__.pop("amqp", None)
    theirs = client.send("flaky", "theirs", 1)
    assert client.value(theirs)
    assert client.executions() == {"theirs": 2}
    with redis.Redis.from_url(broker.redis_url) as db:
        own = {key for key in db.scan_iter() if not key.startswith(b"theirs:")}
        assert b"shop" in own
        assert {key for key in own if b"celery_resilience" in key} == set()


# Other ways to a server


@pytest.fixture
def server_binary(request: pytest.FixtureRequest) -> str:
    """A Redis with TLS and Sentinel."""
    found: Any = request.config.getoption("redis_server") or shutil.which("redis-server")
    if not found:
        missing("redis-server is not installed")
    return str(found)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with ``key.pem`` and ``cert.pem``, self-signed for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_tls(
    pool: str,
    redis_broker: Broker,
    server_binary: str,
    certificates: Path,
    start_worker: StartWorker,
) -> None:
    """The server's certificate is verified; messages larger than a TLS record come through."""
    port = free_port()
    options = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    for name, file in (("cert-file", "cert"), ("key-file", "key"), ("ca-cert-file", "cert")):
        options += [f"--tls-{name}", str(certificates / f"{file}.pem")]
    with EmbeddedServer(binary=server_binary, options=options):
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required"
        broker = replace(
            redis_broker,
            broker_url=f"{url}&ssl_ca_certs={certificates / 'cert.pem'}",
        )
        client = Client(broker, certificates / "record")
        worker = start_worker(SHOP, broker, pool=pool, env=client.env)
        results = [client.send("flaky", f"t-{n}", n % 2, padding="x" * 20_000) for n in range(30)]
        for result in results:
            assert client.value(result)
        assert "Redis, through our own transport" in worker.log()
        pong = eventually(lambda: client.app.control.ping(timeout=1))
        assert pong == [{worker.name: {"ok": "pong"}}]
        assert worker.terminate() == 0
        client.close()


class Sentinels:
    """A master, a replica and a sentinel that watches them."""

    def __init__(self, binary: str, stack: ExitStack, directory: Path) -> None:
        self.port = free_port()
        self.master = stack.enter_context(EmbeddedServer(binary=binary, port=0))
        follow = ["--replicaof", "127.0.0.1", str(self.master.port)]
        self.replica = stack.enter_context(EmbeddedServer(binary=binary, port=0, options=follow))
        eventually(self._replica_is_up, message="the replica follows")
        conf = directory / "sentinel.conf"
        conf.write_text(
            f"sentinel monitor shop 127.0.0.1 {self.master.port} 1\n"
            "sentinel down-after-milliseconds shop 1000\n"
            "sentinel failover-timeout shop 3000\n"
        )
        self.sentinel = stack.enter_context(SentinelServer(binary, conf, self.port))

    def _replica_is_up(self) -> bool:
        with redis.Redis.from_url(self.replica.url.replace("/0", "")) as client:
            return bool(client.info("replication").get("master_link_status") == "up")


class SentinelServer:
    """``redis-server --sentinel``."""

    def __init__(self, binary: str, conf: Path, port: int) -> None:
        self._process = subprocess.Popen(
            leashed([binary, str(conf), "--sentinel", "--port", str(port), "--bind", "127.0.0.1"]),
            cwd=conf.parent,
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: self._knows_the_replica(port), message="the sentinel is up")

    def _knows_the_replica(self, port: int) -> bool:
        try:
            with redis.Redis(port=port) as client:
                return len(client.sentinel_slaves("shop")) == 1
        except redis.RedisError:
            return False

    def __enter__(self) -> SentinelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def sentinels(server_binary: str, tmp_path: Path) -> Iterator[Sentinels]:
    with ExitStack() as stack:
        yield Sentinels(server_binary, stack, tmp_path)


def test_sentinel_names_another_master(
    redis_broker: Broker, sentinels: Sentinels, tmp_path: Path, start_worker: StartWorker
) -> None:
    """The worker goes on with the new one."""
    broker = replace(
        redis_broker,
        broker_url=f"sentinel://127.0.0.1:{sentinels.port}/0",
    )
    client = Client(broker, tmp_path / "record")
    client.app.conf.broker_transport_options = {"master_name": "shop"}
    env = {**client.env, "BROKER_OPTIONS": '{"master_name": "shop"}'}
    worker = start_worker(SHOP, broker, env=env)
    assert client.value(client.send("flaky", "before", 1))
    assert "Redis, through our own transport" in worker.log()

    sentinels.master.kill()
    asked = redis.sentinel.Sentinel([("127.0.0.1", sentinels.port)])

    def promoted() -> bool:
        try:
            return bool(asked.discover_master("shop")[1] == sentinels.replica.port)
        except redis.RedisError:
            return False

    eventually(promoted, message="the replica is the master")

    sent = []

    def goes_on() -> bool:
        try:
            sent.append(client.send("flaky", "after", 0))
        except Exception:  # the client's own connection has to find the new master too
            client.app.pool.force_close_all()
            return False
        return client.executions()["after"] > 0

    eventually(goes_on, timeout=40, every=0.5)
    for result in sent:  # a pool that has something to do may hang at its end, as stock Celery's
        assert client.value(result)
    assert worker.terminate() == 0
    client.close()
