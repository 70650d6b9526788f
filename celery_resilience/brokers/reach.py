"""Reaching an app's broker from a command, which can't wait for ever as a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery_resilience.brokers import Broker, open_broker
from celery_resilience.errors import BrokerError

__all__ = ["Reached", "Unreachable", "reach"]

#: How long to wait for a broker that does not answer, in seconds.
_CONNECT = 5.0


class Unreachable(BrokerError):
    """The broker does not answer, or has hung up."""


class Reached:
    """The broker of *app*, for one iteration after the other; the connection opens when needed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._connection: Any = None
        self._broker: Broker | None = None
        self._busy = False

    @contextmanager
    def turn(self) -> Iterator[Broker]:
        """The broker, for one iteration; afterwards all that was looked at is where it was."""
        if self._busy:
            raise RuntimeError("finish the iteration that has begun first")
        self._busy = True
        try:
            if self._broker is None:
                self._connection, self._broker = reach(self._app)
            yield self._broker
            self._broker.close()  # gives back what was looked at
        except BaseException as exc:
            lost = self._connection is not None and isinstance(
                exc, (*self._connection.connection_errors, *self._connection.channel_errors)
            )
            where = self._connection.as_uri() if lost else ""
            with suppress(Exception):
                self.close()
            if lost:
                raise Unreachable(f"lost {where}: {exc}") from exc
            raise
        finally:
            self._busy = False

    def close(self) -> None:
        """Close the connection; it is opened again when needed."""
        broker, connection = self._broker, self._connection
        self._broker = self._connection = None
        if broker is not None:
            broker.close()
        if connection is not None:
            connection.release()


def reach(app: Any) -> tuple[Any, Broker]:
    """A connection to the broker that *app* reads from, and the Broker on it.

    Raises Unreachable, without the password, if there is no answer, and BrokerError if there can
    be none.
    """
    try:
        connection = app.connection_for_read()
        driver = connection.transport.driver_type
    except KeyError as exc:
        raise BrokerError(f"broker_url: {exc.args[0]}") from exc
    except AttributeError as exc:  # kombu goes on with None for a package that is not installed
        raise BrokerError(
            "a redis:// broker needs the redis package: pip install 'celery-resilience[redis]'"
        ) from exc
    if driver == "redis":
        connection.transport_options.setdefault("socket_connect_timeout", _CONNECT)
    try:
        # One more try for each other broker that the setting names; nobody waits in between.
        connection.ensure_connection(max_retries=max(1, len(connection.alt)), interval_start=0)
        return connection, open_broker(connection)
    except Exception as exc:
        connection.release()
        said = str(exc)
        if connection.password:
            said = said.replace(str(connection.password), "**")
        raise Unreachable(f"can't reach {connection.as_uri()}: {said}") from exc
