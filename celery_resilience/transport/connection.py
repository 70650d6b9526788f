"""The connection that fetches from the lists; the server notifies of what it has read there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from celery_resilience.brokers.connections import ANSWER
from celery_resilience.transport.notifications import ListNotifications

__all__ = ["FetchConnection", "Question"]


class Question(NamedTuple):
    """What the server was asked."""

    #: Its queues in their order; none: it is only asked to ack.
    queues: list[str]
    #: How the delivery tags of what it hands out begin.
    tags: str
    #: The delivery tags that it acks.
    acks: list[str]
    #: It is only asked whether there is something.
    is_glance: bool = False


class FetchConnection:
    """One channel's connection for looking, and the wake-up that belongs to it."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._digests: dict[str, str] = {}
        #: The script that was asked for and has not been answered yet, with its arguments; "": a
        #: count of keys.
        self._asked: tuple[str, tuple[Any, ...]] | None = None
        #: It is written to or read from here and now: who does so hears of it if it is cut.
        self.in_use = False
        self._since = 0.0
        #: The socket that is waited for.
        self._watched: Any = None
        self.notifications = ListNotifications()

    @property
    def asking(self) -> bool:
        """Whether an answer is on its way."""
        return self._asked is not None

    @property
    def is_another(self) -> bool:
        """Whether the socket is not the one that was waited for, and no answer is on its way."""
        if self._asked is not None or self._watched is None:
            return False
        return self.sock is not self._watched

    @property
    def sock(self) -> Any:
        """The socket that the answer comes in at."""
        connection = self._connection
        return None if connection is None else connection._sock

    @property
    def _connection(self) -> Any:
        client = self._channel.__dict__.get("client")  # only if it was made
        return None if client is None else client.connection

    def ask(self, script: str, keys: Sequence[str | bytes], args: list[Any]) -> None:
        """Have the server run *script*; ``answer`` returns what comes of it."""
        arguments = (len(keys), *keys, *args)
        digest = self._digests.get(script)
        if digest is None:
            digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._digests[script] = digest
        self._send((script, arguments), "EVALSHA", digest, *arguments)

    def count(self, keys: Sequence[bytes]) -> None:
        """Ask how many of the *keys* there are. That is a look, too: the server tells of the next
        message in one of them."""
        self._send(("", ()), "EXISTS", *keys)

    def _send(self, asked: tuple[str, tuple[Any, ...]], *command: Any) -> None:
        connection = self._connected()
        self._asked, self._since, self.in_use = asked, monotonic(), True
        try:
            # A check of its health would reconnect it unnoticed.
            connection.send_packed_command([_packed(*command)], check_health=False)
        except BaseException:
            self.disconnect()
            raise
        finally:
            self.in_use = False

    def answer(self) -> Any:
        """The answer to what was asked, once it is here.

        Raises a connection error if there is none: the script may have run all the same.
        """
        from redis.exceptions import NoScriptError, ResponseError

        assert self._asked is not None
        (script, arguments), connection = self._asked, self._connection
        self.in_use = True
        try:
            try:
                return connection.read_response()
            except NoScriptError:
                connection.send_command("EVAL", script, *arguments)
                return connection.read_response()
        except ResponseError:
            raise
        except BaseException:  # it may come later, and would be taken for another one's
            self.disconnect()
            raise
        finally:
            self._asked, self.in_use = None, False

    @property
    def overdue(self) -> bool:
        """Whether the answer ought to be here."""
        return self._asked is not None and monotonic() - self._since > ANSWER

    def has_answer(self) -> bool:
        """Whether the answer is here. Its socket may tell of it no more: it may be read by this."""
        return bool(self._connection.can_read(timeout=0))

    def _connected(self) -> Any:
        channel, client = self._channel, self._channel.client
        cycle = channel.connection.cycle
        if client.connection is None:
            try:
                client.connection = client.connection_pool.get_connection()
            except TypeError:  # redis-py before 5.3 wants the command's name
                client.connection = client.connection_pool.get_connection("EVALSHA")
        connection = client.connection
        if connection._sock is None:
            connection.connect()
        cycle.watch(channel, "FETCH", connection._sock)
        self._watched = connection._sock
        if not (self.notifications.refused or self.notifications.serves(connection)):
            self.silence()
            self.notifications.open(channel.pool, connection)
            if self.notifications.sock is not None:
                cycle.watch(channel, "NOTIFY", self.notifications.sock)
        return connection

    def silence(self) -> None:
        """Give up the wake-up; the next look gets a new one."""
        if self._channel.connection is not None:
            self._channel.connection.cycle.unwatch(self._channel, "NOTIFY")
        self.notifications.close()

    def disconnect(self) -> None:
        """End both connections; the next look opens them again."""
        self._asked = None
        self.silence()
        self._watched = None
        if self._channel.connection is not None:
            self._channel.connection.cycle.unwatch(self._channel, "FETCH")
        if self._connection is not None:
            with suppress(self._channel.ResponseError):  # of what was on its way
                self._connection.disconnect()


def _packed(*command: Any) -> bytes:
    """*command* as Redis reads it: redis-py takes three times as long for it, at every look."""
    words = [word if type(word) is bytes else str(word).encode() for word in command]
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(w), w) for w in words]])
