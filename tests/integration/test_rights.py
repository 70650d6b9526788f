"""The rights that the docs list are enough: worker, sender and commands run with these alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from celery_resilience.brokers.redis.rights import acl
from tests.servers import RabbitServer, eventually
from tests.worker import ROOT, Broker

pytestmark = pytest.mark.timeout(300)

PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
APP = """
import os
import signal
import time

from celery import Celery
from celery.exceptions import Reject
from celery_resilience import Policy, ResilientTask, TransientError, install
from celery_resilience.brokers.redis import leases

leases.LEASE, leases.RENEW, leases.GRACE = 4.0, 1.0, 0.0  # a test does not wait for half a minute

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.update(task_default_queue="shop", worker_proc_alive_timeout=30)
install(app)


@app.task(base=ResilientTask, bind=True, failure_policy=Policy(max_retries=1, backoff=1))
def flaky(self, name, times):
    print(f"ran {name}")
    if self.request.retries < times:
        raise TransientError(name)


@app.task
def rejects(name):
    raise Reject("no", requeue=False)


@app.task(base=ResilientTask, failure_policy=Policy(max_retries=1, backoff=600))
def parks(name):
    raise TransientError(name)


@app.task(bind=True)
def lasts(self, name, folder):
    print(f"ran {name}")
    with open(os.path.join(folder, name), "a") as file:
        file.write(f"{os.getppid()}\\n")
    if not os.path.exists(os.path.join(folder, "over")):
        time.sleep(600)
"""


class Shop:
    """The app of :data:`APP` in processes of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "shop.py").write_text(APP)
        path = os.pathsep.join((str(folder), str(ROOT)))
        self.env = {**os.environ, "PYTHONPATH": path, "BROKER": url}
        self.workers: list[subprocess.Popen[bytes]] = []

    def work(self, name: str, patience: float = 40) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-E", "-n",
                 f"{name}@h", "--loglevel", "INFO"],
                cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        eventually(
            lambda: " ready." in self.log(name) or worker.poll() is not None, patience,
            message=f"{name} is ready",
        )  # fmt: skip
        assert worker.poll() is None, f"{name} is ready"
        return worker

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def send(self, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", f"from shop import *; {code}"], cwd=self.folder, env=self.env,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "shop", *words], cwd=self.folder, env=self.env,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, 9)
            worker.wait()


@pytest.fixture
def shops(tmp_path) -> Iterator[list[Shop]]:
    shops: list[Shop] = []
    yield shops
    for shop in shops:
        shop.end()


def play(shop: Shop) -> None:
    """A life: retries, dead letters of each kind, a dead worker, commands, events, control."""
    first = shop.work("first")
    shop.send(
        f"flaky.delay('recovers', 1); flaky.delay('dies', 9); rejects.delay('r'); parks.delay('p');"
        f"app.send_task('no.such'); lasts.delay('held', {str(shop.folder)!r})"
    )
    eventually(lambda: shop.log("first").count("dead letter") >= 3, 40, message="three letters")
    eventually(lambda: shop.log("first").count("ran recovers") == 2, 40)
    assert "pong" in shop.run("inspect", "ping", "--timeout", "5")
    os.killpg(first.pid, 9)
    (shop.folder / "over").touch()
    shop.work("second")
    shop.run("retries", "run", "--all", "--yes")
    shop.run("dlq", "replay", "--all", "--yes")
    eventually(lambda: len((shop.folder / "held").read_text().split()) == 2, 60)
    log = shop.log("first") + shop.log("second")
    assert not re.search(r"(?i)noperm|permission|access_?refused|can't be moved|refused", log), log
    assert "Redis refuses" not in shop.run("resilience", "doctor")


@pytest.mark.parametrize("scheme", ["redis", "resilient-redis"])
def test_rights_of_the_docs_are_enough_on_redis(scheme, redis_broker: Broker, tmp_path, shops):
    admin = redis.Redis.from_url(redis_broker.redis_url)
    (line,) = re.findall(r"^ACL SETUSER shop on >secret (.*?)```", PAGE, re.S | re.M)
    rules = line.replace("\\\n", " ").split()
    assert rules == acl(["shop", "dead_letter"])
    database = admin.connection_pool.connection_kwargs["db"]
    rules = acl(["shop", "dead_letter"], database)
    admin.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", *rules)
    url = redis_broker.broker_url
    url = url[url.index("redis") :].replace("://", "://shop:secret@", 1)
    shops.append(Shop(tmp_path, url if scheme == "redis" else f"resilient-{url}"))
    try:
        play(shops[0])
    finally:
        admin.execute_command("ACL", "DELUSER", "shop")
        admin.close()


def test_rights_of_the_docs_are_enough_on_rabbitmq(rabbitmq_server: RabbitServer, tmp_path, shops):
    (line,) = re.findall(r"^rabbitmqctl set_permissions -p / shop (.*?)```", PAGE, re.S | re.M)
    configure, write, read = re.findall(r"'([^']*)'", line)
    vhost = rabbitmq_server.add_vhost()
    quoted = ", ".join(
        f'<<"{pattern}">>'.replace("\\", "\\\\") for pattern in (configure, write, read)
    )
    rabbitmq_server.evaluate(
        'rabbit_auth_backend_internal:add_user(<<"shop">>, <<"secret">>, <<"tests">>),'
        f'rabbit_auth_backend_internal:set_permissions(<<"shop">>, <<"{vhost}">>, {quoted},'
        ' <<"tests">>).'
    )
    url = rabbitmq_server.url(vhost).replace("guest:guest", "shop:secret")
    shops.append(Shop(tmp_path, url))
    try:
        play(shops[0])
    finally:
        rabbitmq_server.delete_vhost(vhost)
        rabbitmq_server.evaluate(
            'rabbit_auth_backend_internal:delete_user(<<"shop">>, <<"tests">>).'
        )


def test_worker_that_lacks_rights_on_redis_says_which(redis_broker: Broker, tmp_path, shops):
    """The keys are kombu's alone: Redis says that some key is not allowed, and not which."""
    admin = redis.Redis.from_url(redis_broker.redis_url)
    rules = ("~_kombu*", "~unacked*", "~shop*", "~*.pidbox*", "~celeryev*", "allchannels", "+@all")
    admin.execute_command("ACL", "SETUSER", "kombu", "reset", "on", ">secret", *rules)
    url = redis_broker.broker_url
    shops.append(Shop(tmp_path, url[url.index("redis") :].replace("://", "://kombu:secret@", 1)))
    try:
        with pytest.raises(AssertionError, match="first is ready"):
            shops[0].work("first", patience=15)
    finally:
        admin.execute_command("ACL", "DELUSER", "kombu")
        admin.close()
    log = shops[0].log("first")
    assert "Redis refuses this user ZADD, ZREM" in log
    assert "on celery_resilience:workers; HSET" in log
    assert "on dead_letter; docs/security.md lists the rights" in log
