"""Celery's own result backends on Redis, under the names of our transports.

Results are kept as with ``redis://``: it is the broker's URL that says how messages are taken.
"""

from __future__ import annotations

from typing import Any

from celery.backends import redis as _redis

_celery: Any = _redis  # the stubs miss half of it

__all__ = ["RedisBackend", "SentinelBackend"]


def _plain(url: str | None) -> str | None:
    """*url* as Celery knows it; several are divided by semicolons."""
    if url is None:
        return None
    return ";".join(each.strip().removeprefix("resilient-") for each in url.split(";"))


class RedisBackend(_celery.RedisBackend):  # type: ignore[misc]
    """Celery's on one Redis, over TLS or a socket too."""

    def __init__(self, *args: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(*args, url=_plain(url), **options)


class SentinelBackend(_celery.SentinelBackend):  # type: ignore[misc]
    """Celery's on the master that Redis Sentinel names."""

    def __init__(self, *args: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(*args, url=_plain(url), **options)
