"""What an operator's session with a broker has, whatever it is about."""

from __future__ import annotations

from typing import Any, TypeVar

from celery_resilience.brokers.connect import TIMEOUT, BrokerSession
from celery_resilience.operate.app_info import parameters_of
from celery_resilience.settings import Settings

__all__ = ["OperatorSession"]

S = TypeVar("S", bound="OperatorSession")


class OperatorSession:
    """A Celery *app* and a connection to its broker, which is opened when it is needed; each answer
    may take *timeout* seconds."""

    def __init__(self, app: Any, timeout: float = TIMEOUT) -> None:
        self._app = app
        self.settings = Settings.of(app)
        self._timeout = timeout
        self._session = BrokerSession(app, timeout)
        self._parameters = parameters_of(app)

    def close(self) -> None:
        """Close the connection to the broker; it is opened again when needed."""
        self._session.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
