"""Reaching an app's broker from a command, which can't wait for ever as a worker does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery_resilience.brokers.base import Broker, BrokerOptions, HangsUp
from celery_resilience.brokers.connections import bound
from celery_resilience.brokers.within import within
from celery_resilience.errors import BrokerError

__all__ = ["TIMEOUT", "BrokerSession", "NoAnswer", "Unreachable", "open_broker", "reach"]

#: How long to wait for a broker that does not answer, in seconds.
TIMEOUT = 10.0


class Unreachable(BrokerError):
    """The broker refuses the connection, or has hung up."""

    __module__ = "celery_resilience.brokers.reach"  # stored errors name it


class NoAnswer(Unreachable):
    """The broker, or the server that knows its address, does not answer in time."""


class BrokerSession:
    """The broker of *app*, for one iteration after the other; the connection opens when needed.

    Each of its answers may take *timeout* seconds.
    """

    def __init__(self, app: Any, timeout: float = TIMEOUT) -> None:
        self._app = app
        self._timeout = timeout
        self._connection: Any = None
        self._broker: Broker | None = None
        self._busy = False

    @contextmanager
    def use(self) -> Iterator[Broker]:
        """The broker, for one iteration; afterwards all that was read is where it was."""
        if self._busy:
            raise RuntimeError("finish the iteration that has begun first")
        self._busy = True
        try:
            if self._broker is None:
                self._connection, self._broker = reach(self._app, self._timeout)
            yield self._broker
            self._broker.close()  # returns what was read
        except BaseException as exc:
            lost = self._connection is not None and isinstance(
                exc, (*self._connection.connection_errors, *self._connection.channel_errors)
            )
            where = self._connection.as_uri() if lost else ""
            silent = lost and _is_silence(exc)
            with suppress(Exception):
                self.close(silent=silent)
            if silent:
                raise NoAnswer(f"{where} has not answered for {self._timeout:g} s") from exc
            if lost:
                raise Unreachable(f"lost {where}: {exc}") from exc
            raise
        finally:
            self._busy = False

    @property
    def connection(self) -> Any:
        """The connection, while it is in use."""
        return self._connection

    def close(self, silent: bool = False) -> None:
        """Close the connection; it is opened again when needed. One that is *silent* is dropped:
        to say goodbye would be to wait for its answer."""
        broker, connection = self._broker, self._connection
        self._broker = self._connection = None
        if silent and broker is not None:
            broker.abandon() if isinstance(broker, HangsUp) else broker.close()
            connection.collect()
            return
        if broker is not None:
            broker.close()
        if connection is not None:
            connection.release()


def reach(app: Any, timeout: float = TIMEOUT) -> tuple[Any, Broker]:
    """A connection to the broker that *app* reads from, and the Broker on it; each answer may take
    *timeout* seconds.

    Raises Unreachable, without the password, if there is no connection (NoAnswer: not in time), and
    BrokerError if there can be none.
    """
    try:
        connection = app.connection_for_read()
        connection.transport  # noqa: B018 - imported when it is asked for
    except KeyError as exc:
        raise BrokerError(f"broker_url: {exc.args[0]}") from exc
    except AttributeError as exc:  # kombu goes on with None for a package that is not installed
        raise BrokerError(
            "a redis:// broker needs the redis package: pip install 'celery-resilience[redis]'"
        ) from exc
    bound(connection, timeout)

    def connect() -> Broker:
        # One more try for each other broker that the setting names; without a pause in between.
        connection.ensure_connection(max_retries=max(1, len(connection.alt)), interval_start=0)
        return open_broker(connection, timeout=timeout)

    try:
        broker = within(timeout, connect, "it", late=lambda broker: connection.release())
    except Exception as exc:
        silent = _is_silence(exc)
        if not silent:
            connection.release()
        said = str(exc)
        if connection.password:
            said = said.replace(str(connection.password), "**")
        kind = NoAnswer if silent else Unreachable
        raise kind(f"can't reach {connection.as_uri()}: {said}") from exc
    return connection, broker


def _is_silence(exc: BaseException | None) -> bool:
    """Whether what went wrong is that no answer came."""
    while exc is not None:
        if type(exc).__name__ == "TimeoutError":  # Python's, redis-py's
            return True
        exc = exc.__cause__ or exc.__context__
    return False


def open_broker(
    connection: Any,
    hub: Any = None,
    settings: BrokerOptions | None = None,
    timeout: float | None = None,
) -> Broker:
    """The Broker that fits a kombu *connection*; *hub* is the worker's loop, if it has one.

    *settings* are the worker's; a command has no need of them, but says how many seconds an answer
    may take (*timeout*).
    """
    driver = connection.transport.driver_type
    if driver == "redis":
        from celery_resilience.brokers.redis.broker import RedisBroker

        return RedisBroker(connection, settings)
    if driver == "amqp":
        from celery_resilience.brokers.rabbitmq.broker import AmqpBroker

        return AmqpBroker(connection, hub, settings, timeout)
    from celery_resilience.brokers.plain import PlainBroker

    return PlainBroker(connection)
