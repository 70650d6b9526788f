"""Connections to a broker that do not wait for ever: each has its deadlines.

A router or a load balancer may forget a connection, and tell neither end; a server may accept one
and never answer. Without a deadline the caller then waits until the process is ended. What
the app's own options say stays; where they say nothing these hold.
"""

from __future__ import annotations

import socket
from functools import cache
from typing import Any

from celery_resilience.brokers.within import Awaited

__all__ = ["ANSWER", "CONNECT", "RESOLVE", "SETTLE", "bound", "pool_of", "use_one_client"]

#: How long a server may take to answer, in seconds; and for how long the worker's loop may stand
#: because it does not answer a settlement.
ANSWER, SETTLE = 10.0, 5.0
#: How long until a connection is there, and until its server's name is known, in seconds.
CONNECT, RESOLVE = 5.0, 5.0
#: More than any worker opens; the app's ``max_connections`` is for kombu's own.
_MANY = 1000


def _keepalive() -> dict[int, int]:
    """The kernel looks after a connection that nothing is sent on: it is ended within a minute."""
    named = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): n for name, n in named.items() if hasattr(socket, name)}


def _options(answer: float) -> dict[str, Any]:
    return {
        "socket_timeout": answer,
        "socket_connect_timeout": min(CONNECT, answer),
        "socket_keepalive": True,
        "socket_keepalive_options": _keepalive(),
    }


def bound(connection: Any, answer: float = ANSWER) -> None:
    """Give the kombu *connection*, which is not open yet, deadlines where the app states none.

    An answer may take *answer* seconds.
    """
    driver = connection.transport.driver_type
    if driver == "redis":
        _fill(connection.transport_options, _options(answer))
    elif driver == "amqp":
        _fill(connection.transport_options, {"read_timeout": answer, "write_timeout": answer})


def pool_of(channel: Any) -> Any:
    """A pool of connections of our own to the server of kombu's Redis *channel*, on its settings:
    with deadlines where the app states none, and not counted with kombu's."""
    pool = channel._get_pool()
    params, options = pool.connection_kwargs, _options(SETTLE)
    if params.get("socket_timeout") == ANSWER:  # what the worker's has been given
        del params["socket_timeout"]
    _fill(params, {"socket_timeout": SETTLE} if "path" in params else options)
    pool.max_connections = _MANY
    if "host" in params:
        pool.connection_class = _resolving(pool.connection_class)
    return pool


def use_one_client(channel: Any) -> None:
    """Let *channel* go on with the client it has: kombu makes a new one for every command.

    That costs as much as the command itself, at every delivery and acknowledgement.
    """
    create = channel._create_client
    known: dict[str, Any] = {}

    def _create_client(asynchronous: bool = False) -> Any:
        if asynchronous:  # reads on its own: BRPOP and pub/sub keep state in theirs
            return create(asynchronous=True)
        if known.get("pool") is not channel.pool:
            known.update(client=create(), pool=channel.pool)
        return known["client"]

    channel._create_client = _create_client


def _fill(options: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if options.get(name) is None:
            options[name] = value


@cache
def _resolving(kind: type) -> type:
    """A *kind* of connection that does not wait for ever for its server's name."""

    def connect(self: Any, *args: Any, **options: Any) -> Any:
        if self._sock is None:
            _address_of(self.host, self.port).get()
        return kind.connect(self, *args, **options)  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"connect": connect})


@cache
def _address_of(host: str, port: int) -> Awaited[Any]:
    """One for all who ask: a name server that does not answer one of them is not waited for by the
    others."""
    return Awaited(
        RESOLVE,
        lambda: socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM),
        f"the name server, asked for {host},",
    )
