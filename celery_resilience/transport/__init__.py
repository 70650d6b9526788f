"""A Redis transport for Celery that loses nothing between the broker and the worker.

Workers on kombu's URLs take their messages through it (``selection``); a URL can name it too:
``resilient-redis://``, ``resilient-rediss://`` (TLS), ``resilient-redis+socket://``,
``resilient-sentinel://``. Options, keys and messages are those of kombu's transport, so that both
work on the same queues.

kombu's pops a message and records afterwards who holds it; a worker that dies in between loses
the message. Here both happen in one script, many messages at a time, and what is no
message at all becomes a dead letter instead of ending the worker.
"""

from __future__ import annotations

import logging
import ssl
from threading import Lock
from typing import Any

from kombu.transport import redis as _kombu_redis

from celery_resilience.transport.channel import Channel
from celery_resilience.transport.poller import Poller

_redis: Any = _kombu_redis  # the stubs miss half of it

__all__ = ["SecureTransport", "SentinelChannel", "SentinelTransport", "Transport"]

logger = logging.getLogger("celery_resilience")

_alternates = Lock()


class Transport(_redis.Transport):  # type: ignore[misc]
    """kombu's Redis transport with our channel and our poller."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.cycle.use(loop)
        super().register_with_event_loop(connection, loop)


class SecureTransport(Transport):
    """Over TLS, with the options that kombu's ``rediss://`` has, and its default."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not client.ssl:
            logger.warning(
                "resilient-rediss:// without ssl_cert_reqs: the server's certificate is not "
                "verified, as with rediss://"
            )
            client.ssl = {"ssl_cert_reqs": ssl.CERT_NONE}
        super().__init__(client, **kwargs)


class SentinelChannel(Channel, _redis.SentinelChannel):  # type: ignore[misc]
    """On the master that Redis Sentinel names."""

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        client = self.connection.client
        # kombu picks the sentinels out of the alternates by its own scheme.
        with _alternates:
            alternates = client.alt
            client.alt = [url.replace("resilient-sentinel:", "sentinel:") for url in alternates]
            try:
                return super()._sentinel_managed_pool(asynchronous)
            finally:
                client.alt = alternates


class SentinelTransport(Transport):
    """kombu's Sentinel transport in the same way."""

    default_port = 26379
    Channel = SentinelChannel
