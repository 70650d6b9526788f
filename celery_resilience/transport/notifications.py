"""How an idle consumer on Redis hears of a new message: the server tells it, at once.

``BRPOP`` waits *and* takes, and what it takes is lost when its answer is. Here nothing is taken
while waiting. The connection that fetches has the server remember what it read there
(``CLIENT TRACKING``, meant for caches), and the server says so on a second connection, ours, when
one of those lists changes. Nothing is asked meanwhile.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
from time import monotonic
from typing import Any

__all__ = ["EVERY", "SAFETY", "ListNotifications"]

logger = logging.getLogger("celery_resilience")

#: How often is looked where the server does not tell, in seconds, while something is found.
EVERY = 0.1
#: How often is looked all the same: a word may get lost with a router in between.
SAFETY = 5.0

#: The most that the interval grows to, in seconds, and for each worker that looks: together they
#: look about seventy times a second, and each at least once.
_SELDOM, _SELDOM_EACH = 1.0, 0.015

#: The longest that a worker lets others go first, in seconds, and that for each worker there is:
#: together they look about 140 times a second for what they are told of. The first such pause.
_MOST_POLITE, _POLITE_EACH = 2.0, 0.014
_FIRST_MOST, _FIRST_EACH = 0.1, 0.0002
#: Who has looked and then was told of nothing for so long, in seconds, lets others go first no
#: longer; and that for each worker: if then all fetch at once, that is 200 times a second at most.
_QUIET, _QUIET_EACH = 10.0, 0.005
#: For how many workers a consumer that is none takes itself and the others.
SOME = 4

_CLOSED = (ConnectionError, OSError)
_nothing_to_read = (BlockingIOError, InterruptedError, ssl.SSLWantReadError)


class ListNotifications:
    """The connection on which the server notifies of new messages."""

    def __init__(self) -> None:
        self.connection: Any = None
        #: The server has no such service, or not for us: then the lists are polled.
        self.refused = False
        self._told: Any = None
        #: How many workers there are.
        self.workers = SOME
        self._polite, self._heard_at = 0.0, 0.0
        #: The last look that was asked for, or was due, has found nothing.
        self.in_vain = False
        self._every = EVERY

    @property
    def sock(self) -> socket.socket | None:
        """The socket to wait for."""
        return None if self.connection is None else self.connection._sock

    def serves(self, looking: Any) -> bool:
        """Whether the server tells of what the connection *looking* has read."""
        return self.sock is not None and self._told is looking._sock

    def open(self, pool: Any, looking: Any) -> None:
        """Let the server tell, here, of what the connection *looking* reads from now on."""
        from redis.exceptions import ResponseError

        self.close()
        # In the newer protocol there is nothing to subscribe to, so no right to be granted either.
        ours = pool.connection_class(**{**pool.connection_kwargs, "protocol": 3})
        try:
            ours.connect()
            number = _ask(ours, "CLIENT", "ID")
            _ask(looking, "CLIENT", "TRACKING", "ON", "REDIRECT", number, "NOLOOP")
        except ResponseError as exc:
            ours.disconnect()
            self.refused = True
            logger.warning(
                "Redis client tracking unavailable (CLIENT TRACKING: %s), polling every %g to %g s",
                exc, EVERY, _SELDOM,
            )  # fmt: skip
            return
        except BaseException:
            ours.disconnect()
            raise
        ours._sock.settimeout(0)
        self.connection, self._told = ours, looking._sock

    def drain(self) -> bool:
        """Read all that was told, which says no more than that it was; False: it was cut off."""
        sock = self.sock
        try:
            while sock is not None:
                if not sock.recv(65536):
                    break
        except _nothing_to_read:
            return True
        except _CLOSED:
            pass
        return False

    @property
    def _first(self) -> float:
        return min(_FIRST_MOST, _FIRST_EACH * self.workers)

    def pause(self) -> float:
        """How long to wait, in seconds, before the look that this wake-up asks for."""
        quiet, self._heard_at = monotonic() - self._heard_at, monotonic()
        if quiet > min(_QUIET, _QUIET_EACH * self.workers):
            self._polite = min(self._polite, self._first)
        return random.uniform(0, self._polite)

    def looked(self, found: bool) -> None:
        """Called after the look that a wake-up has asked for.

        One message wakes every idle worker. Those woken in vain let the others go first, the
        more often and the more workers there are the longer: until it has looked, the server does
        not tell a worker of the next message either. One that is alone is never woken in vain.
        """
        self.in_vain, self._heard_at = not found, monotonic()
        longer = self._polite * 2 or self._first
        most = min(_MOST_POLITE, _POLITE_EACH * self.workers)
        self._polite = 0.0 if found else min(longer, most)

    @property
    def every(self) -> float:
        """How often to look where the server does not tell, in seconds."""
        return self._every

    def asked(self, found: bool) -> None:
        """Called after a fetch without a notification, where the server sends none."""
        self.in_vain = not found
        most = min(_SELDOM, max(EVERY, _SELDOM_EACH * self.workers))
        slower = min(2 * self._every, most) * random.uniform(0.9, 1.1)  # not all in step
        self._every = EVERY if found else max(EVERY, slower)

    def close(self) -> None:
        """End the connection; its socket must not be waited for any more."""
        connection, self.connection, self._told = self.connection, None, None
        if connection is not None:
            connection.disconnect()


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()
