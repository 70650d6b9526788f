"""Whether our transport can stand in for kombu's on a connection, and why not.

No caller notices: the connection keeps its URL, its name and its options, and only its class
answers another transport when it is asked for one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from types import FunctionType
from typing import Any

from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.collections import HashedSeq

from celery_resilience.brokers.redis.leases import plain_client
from celery_resilience.brokers.redis.rights import lacking, told
from celery_resilience.brokers.redis.scripts import KEYS

__all__ = [
    "is_named",
    "is_ours",
    "lets_ours_take",
    "speaks_redis",
    "standing_in",
    "why_not",
    "why_server_refuses",
]

#: What the broker's URL begins with, and which of ours takes the place of kombu's transport.
_OURS = {"redis": "Transport", "rediss": "Transport", "sentinel": "SentinelTransport"}
#: What the names of our transports begin with in a URL.
_NAMED = "resilient-"
#: The parts of kombu's transport that ours stands in for.
_KOMBUS = ("Transport", "SentinelTransport", "Channel", "SentinelChannel", "QoS")
_POLLER = "MultiChannelPoller"
#: Classes that a part of kombu's transport names, and that other code may have replaced.
_PARTS = frozenset({"Channel", "QoS", "Message"})

#: What is done for taking messages that kombu's transport does not do: on the worker's hash of what
#: it holds, on a list, and without a key. Each with arguments that would change nothing.
_HELD = "HSET k f v|HDEL k f"
_LIST = "EXISTS k|LINDEX k 0|RPOP k"
_NO_KEY = "EVALSHA x 0|EVAL x 0"
#: The rights on so many queues are looked at: each has its lists, and rights come as patterns.
_QUEUES = 20


def speaks_redis(connection: Connection) -> bool:
    """Whether *connection*, or one that it fails over to, is to a Redis."""
    urls = [str(url).partition(":")[0].partition("+")[0] for url in connection.alt or ()]
    if any(name in _OURS or name.startswith(_NAMED) for name in (_name(connection), *urls)):
        return True
    return bool(connection.get_transport_cls().driver_type == "redis")


def is_named(connection: Any) -> bool:
    """Whether the URL of *connection* itself names our transport."""
    return _name(connection).startswith(_NAMED)


def is_ours(connection: Any) -> bool:
    """Whether *connection*, which has switched to whatever it could reach, goes through ours."""
    return hasattr(getattr(connection.transport, "Channel", None), "on_undecodable")


def _name(connection: Any) -> str:
    named = connection.transport_cls
    return named if isinstance(named, str) else ""


def why_not(connection: Any) -> str:
    """Why ours can't stand in for the transport of *connection*, as far as can be seen from here;
    empty if it can."""
    named = connection.transport_cls
    if not isinstance(named, str) or "." in named or ":" in named:
        return f"the app names its transport itself ({_shown(named)})"
    changed = patched()
    if changed:
        return f"something has changed kombu's ({changed})"
    if (connection.transport_options or {}).get("ack_emulation", True) is False:
        return "the transport option ack_emulation is False"
    return ""


def _shown(named: Any) -> str:
    return named if isinstance(named, str) else f"{named.__module__}.{named.__qualname__}"


def patched() -> str:
    """What is not kombu's own in kombu's Redis transport; empty if all of it is."""
    from kombu.transport import redis

    for name in _OURS:
        if not TRANSPORT_ALIASES[name].startswith("kombu."):
            return TRANSPORT_ALIASES[name]
    for name in (*_KOMBUS, _POLLER):
        for cls in getattr(redis, name).__mro__:
            where = f"{cls.__module__}.{cls.__qualname__}"
            if not _is_kombus(cls.__module__):
                return where
            for member, value in vars(cls).items():
                if any(not _is_kombus(each) for each in _modules_of(member, value)):
                    return f"{where}.{member}"
    return ""


def _is_kombus(module: str) -> bool:
    top = module.partition(".")[0]
    return top == "kombu" or top in sys.stdlib_module_names


def _modules_of(member: str, value: Any) -> Iterator[str]:
    """The modules that the code of a class's *member* comes from."""
    if isinstance(value, property):
        code = [value.fget, value.fset, value.fdel]
    elif isinstance(value, cached_property):
        code = [value.func]
    elif isinstance(value, (staticmethod, classmethod)):
        code = [value.__func__]
    else:
        code = [value]
    for each in code:
        while type(each) is FunctionType:
            yield each.__globals__["__name__"]
            each = getattr(each, "__wrapped__", None)
        if isinstance(each, type):
            if member in _PARTS:
                yield each.__module__
        elif callable(each) and not type(each).__module__.startswith(("builtins", "kombu")):
            yield type(each).__module__  # something that wraps a function


def lets_ours_take(connection: Any, ours: bool = True) -> None:
    """Let *connection*, which need not be closed, ask for our transport from now on; or for
    kombu's again."""
    connection.release()
    connection._closed = False  # as when it switches to another URL: it is opened when it is used
    base: Any = getattr(type(connection), "stands_in_for", type(connection))
    connection.__class__ = standing_in(base) if ours else base


@cache
def standing_in(base: Any) -> Any:
    """A *base* of connections whose transport on Redis is ours, whatever it fails over to.

    It has a pool of its own: one that it shared would hand out connections of either kind.
    """

    class ThroughOurs(base):  # type: ignore[misc]
        stands_in_for = base

        def get_transport_cls(self) -> Any:
            theirs = super().get_transport_cls()
            name = _OURS.get(_name(self))
            if name is None:
                return theirs
            from celery_resilience import transport

            return getattr(transport, name)

        def __eqhash__(self) -> Any:
            return HashedSeq(ThroughOurs, *super().__eqhash__())

        def __reduce__(self) -> Any:
            _, *rest = super().__reduce__()
            return (base, *rest)

    ThroughOurs.__name__, ThroughOurs.__qualname__ = base.__name__, base.__qualname__
    return ThroughOurs


def why_server_refuses(connection: Any, queues: Sequence[str]) -> str:
    """Why the server of *connection*, which is open, does not let ours take from *queues*; empty
    if it does. Nothing is changed."""
    from redis.exceptions import ResponseError

    channel = connection.default_channel
    prefix = channel.global_keyprefix or ""
    lists = [prefix + queue for queue in sorted(queues)[:_QUEUES]]
    wanted = [(f"{prefix}{KEYS}held:none", _HELD), *((name, _LIST) for name in lists)]
    client: Any = plain_client(channel, single=True)
    try:
        found = lacking(client, [*wanted, ("", _NO_KEY)])
    except ResponseError as exc:
        return f"Redis does not say what is allowed ({exc})"
    finally:
        client.close()
    return f"Redis refuses {told(found)}" if found else ""
