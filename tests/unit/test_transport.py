"""How the Redis transport is named, and what its parts do without a server."""

from __future__ import annotations

import ssl
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES
from redis import Connection as RedisConnection

import celery_resilience  # noqa: F401  (it names the transport to kombu)
from celery_resilience.transport import (
    SecureTransport,
    SentinelTransport,
    Transport,
)
from celery_resilience.transport import (
    notifications as notifications,
)
from celery_resilience.transport.connection import _packed
from celery_resilience.transport.notifications import ListNotifications


@pytest.mark.parametrize(
    ("url", "transport", "host"),
    [
        ("resilient-redis://h:1/2", Transport, "h"),
        ("resilient-rediss://h:1/2", SecureTransport, "h"),
        ("resilient-redis+socket:///tmp/s", Transport, "socket:///tmp/s"),
        ("resilient-sentinel://h:1", SentinelTransport, "h"),
    ],
)
def test_url_chooses_the_transport(url: str, transport: type, host: str) -> None:
    connection = Connection(url)
    assert connection.get_transport_cls() is transport
    assert connection.hostname == host
    assert connection.transport.driver_type == "redis"
    theirs = Connection(url.removeprefix("resilient-"))
    assert connection.as_uri() == f"resilient-{theirs.as_uri()}"


def test_naming_it_does_not_import_redis() -> None:
    code = "import sys, celery_resilience; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert TRANSPORT_ALIASES["resilient-redis"] == "celery_resilience.transport:Transport"


def test_tls_is_as_kombus(caplog: pytest.LogCaptureFixture) -> None:
    options = "ssl_cert_reqs=required&ssl_ca_certs=/ca.pem"
    for scheme in ("rediss", "resilient-rediss"):
        connection = Connection(f"{scheme}://h/0?{options}")
        assert connection.transport.client.ssl == {
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
            "ssl_ca_certs": "/ca.pem",
        }
    caplog.clear()
    assert Connection("resilient-rediss://h/0").transport.client.ssl == {
        "ssl_cert_reqs": ssl.CERT_NONE
    }
    assert "not verified" in caplog.text


def test_every_sentinel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from kombu.transport import redis

    theirs: Any = redis
    asked: list[Any] = []

    class Sentinel:
        def __init__(self, sentinels: Any, **kwargs: Any) -> None:
            asked.extend(sentinels)
            raise ConnectionRefusedError

    monkeypatch.setattr(theirs.sentinel, "Sentinel", Sentinel)
    url = "resilient-sentinel://a:1;resilient-sentinel://b:2;resilient-sentinel://c"
    connection = Connection(url, transport_options={"master_name": "m"})
    with pytest.raises(ConnectionRefusedError):
        connection.transport.create_channel(connection.transport)
    assert asked == [("a", 1), ("b", 2), ("c", 26379)]
    assert connection.alt[0] == "resilient-sentinel://a:1"


@pytest.mark.parametrize(("workers", "longest"), [(2, 0.028), (50, 0.7), (5000, 2.0)])
def test_consumer_that_comes_in_vain_lets_others_go_first(workers: int, longest: float) -> None:
    """In proportion to how many there are."""
    told = ListNotifications()
    told.workers = workers
    assert told.pause() == 0
    told.looked(found=False)
    assert 0 <= told.pause() <= longest / 10
    for _ in range(20):
        told.looked(found=False)
    pauses = [told.pause() for _ in range(100)]
    assert min(pauses) >= 0
    assert longest / 2 < max(pauses) <= longest
    told.looked(found=True)
    assert told.pause() == 0


@pytest.mark.parametrize(("workers", "quiet"), [(4, 0.02), (50, 0.25), (500, 2.5), (5000, 10.0)])
def test_consumer_lets_nobody_go_first_after_a_quiet_time(
    monkeypatch: pytest.MonkeyPatch, workers: int, quiet: float
) -> None:
    """One that is as long as it takes them to look one after the other, every 5 ms."""
    now = 1000.0
    monkeypatch.setattr(notifications, "monotonic", lambda: now)
    told = ListNotifications()
    told.workers = workers
    told.pause()
    for _ in range(20):
        told.looked(found=False)
    first = min(0.1, workers * 0.0002)
    now += 0.9 * quiet
    assert max(told.pause() for _ in range(100)) > 2 * first
    now += 1.1 * quiet
    assert max(told.pause() for _ in range(100)) <= first


@pytest.mark.parametrize(("workers", "most"), [(1, 0.1), (5, 0.1), (20, 0.3), (50, 0.75), (500, 1)])
def test_consumer_that_is_told_nothing_looks_the_less_often_the_more_there_are(
    workers: int, most: float
) -> None:
    told = ListNotifications()
    told.workers = workers
    assert told.every == notifications.EVERY
    every = []
    for _ in range(30):
        told.asked(found=False)
        every.append(told.every)
    assert min(every) >= notifications.EVERY
    assert max(every) <= 1.1 * most
    assert min(every[10:]) >= 0.9 * most
    told.asked(found=True)
    assert told.every == notifications.EVERY


@given(st.lists(st.one_of(st.binary(), st.text(), st.integers(), st.floats(0, 1e9))))
def test_question_is_packed_as_redis_py_packs_it(words: list[Any]) -> None:
    theirs = RedisConnection().pack_command("EVALSHA", *words)
    assert _packed("EVALSHA", *words) == b"".join(theirs)
