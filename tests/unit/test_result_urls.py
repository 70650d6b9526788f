"""One URL for messages and results: that of our transports works for both."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend, SentinelBackend


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://:secret@example:6380/3", {"host": "example", "port": 6380, "db": 3}),
        ("rediss://example/3?ssl_cert_reqs=required", {"host": "example", "db": 3}),
        ("redis+socket:///tmp/redis.sock?virtual_host=2", {"path": "/tmp/redis.sock"}),
    ],
)
def test_results_are_kept_as_with_the_plain_url(url: str, where: dict[str, Any]) -> None:
    plain, ours = (Celery(backend=each, set_as_current=False) for each in (url, f"resilient-{url}"))
    assert isinstance(ours.backend, RedisBackend)
    params: Any = ours.backend.connparams
    assert params == plain.backend.connparams  # type: ignore[attr-defined]
    assert where.items() <= params.items()


def test_sentinels_too() -> None:
    url = "resilient-sentinel://one:26379/1;resilient-sentinel://two:26379/1"
    app = Celery(backend=url, set_as_current=False)
    assert isinstance(app.backend, SentinelBackend)
    hosts = [each["host"] for each in app.backend.connparams["hosts"]]  # type: ignore[attr-defined]
    assert hosts == ["one", "two"]
