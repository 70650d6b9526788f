"""Redis and Valkey, through kombu's own transport: every move is one script.

The keys are kombu's: a list per queue and priority step, a hash of unacknowledged messages by
delivery tag and a sorted set that says since when. The client follows the connection's own
settings (Sentinel, TLS, credentials), the keys its ``global_keyprefix``.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from celery_resilience.brokers import Done, Found, NotOurs, Received
from celery_resilience.envelope import Envelope

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["RedisBroker"]

logger = logging.getLogger("celery_resilience")

_PAGE = 100


class RedisBroker:
    """A :class:`~celery_resilience.brokers.Broker` on Redis."""

    def __init__(self, connection: Any) -> None:
        from redis import Redis

        channel = connection.default_channel
        # kombu's own client adds the key prefix to some commands and some keys only; a plain
        # one on the same pool lets us add it to all of ours.
        self._client: Redis = Redis(connection_pool=channel.pool, single_connection_client=True)
        self._channel = channel
        self._prefix: str = channel.global_keyprefix or ""
        #: How many messages this has released from each list.
        self._released: Counter[str] = Counter()
        self._settle = self._client.register_script(_script("settle"))
        self._release = self._client.register_script(_script("release"))
        _survive_an_outage(channel)
        _use_one_client(channel)

    def hold(self, received: Received, copy: Envelope, delay: float, done: Done) -> None:
        self._move(received, copy.due_in(delay), received.envelope.queue, done)

    def bury(
        self, received: Received, letter: Envelope, queue: str, arguments: Any, done: Done
    ) -> None:
        self._move(received, letter, queue, done)

    def _move(self, received: Received, copy: Envelope, queue: str, done: Done) -> None:
        channel, tag = received.message.channel, received.message.delivery_tag
        try:
            moved = self._settle(
                keys=[
                    self._prefix + channel.unacked_key,
                    self._prefix + channel.unacked_index_key,
                    self._key(queue, copy),
                ],
                args=[tag, self._payload(copy, queue), "1" if received.acked else "0"],
            )
        except Exception as exc:
            done(exc)
            return
        if not received.acked:
            _forget(received.message)
        if moved:
            done(None)
            return
        received.let_go()  # locally: it must not keep its place among what this worker holds
        done(NotOurs(f"{tag} has been handed to another worker"))

    def flush(self, timeout: float) -> None:
        """Nothing is ever under way: a script is over when it returns."""

    def count(self, queue: str) -> int:
        pipe = self._client.pipeline(transaction=False)
        for key in self._keys(queue):
            pipe.llen(key)
        return sum(pipe.execute())

    def look(self, queue: str, limit: int | None = None) -> Iterator[Found]:
        for key in self._keys(queue):
            end = -1  # the right end of the list is the oldest message
            while limit is None or limit > 0:
                size = _PAGE if limit is None else min(_PAGE, limit)
                released = self._released[key]
                page = self._client.lrange(key, end - size + 1, end)
                for payload in reversed(page):
                    yield Found(_read(payload, queue), key=(key, payload))
                if limit is not None:
                    limit -= len(page)
                # What was released meanwhile has moved the rest towards the end.
                end = min(-1, end + self._released[key] - released - size)
                if len(page) < size:
                    break

    def release(self, found: Found, copy: Envelope, queue: str) -> None:
        key, payload = found.key
        if not self._release(
            keys=[key, self._key(queue, copy)], args=[payload, self._payload(copy, queue)]
        ):
            raise NotOurs("somebody else has removed it meanwhile")
        self._released[key] += 1

    def close(self) -> None:
        """The pool is the connection's: it closes with it."""

    def _keys(self, queue: str) -> list[str]:
        channel = self._channel
        return [self._prefix + channel._q_for_pri(queue, n) for n in channel.priority_steps]

    def _key(self, queue: str, copy: Envelope) -> str:
        channel = self._channel
        priority = channel._get_message_priority({"properties": copy.properties}, reverse=False)
        return self._prefix + str(channel._q_for_pri(queue, priority))

    def _payload(self, copy: Envelope, queue: str) -> str:
        # A fresh tag: the late acknowledgement of an old holder must not delete the new one's.
        return str(dumps(copy.to_wire(str(uuid.uuid4()), queue)))


def _forget(message: Any) -> None:
    """Make *message*'s acknowledgement local: the script has removed it from the broker.

    The worker still acknowledges it, for that is how it counts what it holds; sent to the
    broker, that would delete by a tag which is no longer this message's.
    """
    qos, tag = message.channel.qos, message.delivery_tag

    def ack(multiple: bool = False) -> None:
        virtual.QoS.ack(qos, tag)
        message._state = "ACK"

    message.ack = ack


def _survive_an_outage(channel: Any) -> None:
    """Keep a worker alive whose Redis goes away while it holds messages.

    kombu restores them when it closes the channel, finds that the channel's connection has
    gone already, and the AttributeError ends the worker. What is not restored stays where it
    was: a settlement that is under way finds it there.
    """
    qos = channel.qos
    restore = qos.restore_unacked

    def restore_unacked(client: Any = None) -> None:
        try:
            restore(client)
        except (AttributeError, OSError) as exc:
            logger.warning("could not give back %d messages: %r", len(qos._delivered), exc)

    qos.restore_unacked = restore_unacked


def _use_one_client(channel: Any) -> None:
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


def _read(payload: bytes | str, queue: str) -> Envelope:
    try:
        raw = loads(payload)
        return Envelope.from_wire(raw, queue)
    except Exception:  # somebody's garbage: it is shown as what it is
        body = payload if isinstance(payload, bytes) else payload.encode()
        return Envelope(body, None, None, headers={}, queue=queue)


@lru_cache
def _script(name: str) -> str:
    return files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
