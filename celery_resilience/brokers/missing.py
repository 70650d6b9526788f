"""What the names of Redis transports and result backends stand for where no client is installed.

kombu and Celery fail in the middle of an import then, dozens of lines that end in
``No module named 'packaging'``. These say what to install, in one line of a command.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import ImproperlyConfigured
from click import ClickException

__all__ = ["MissingPackage"]


class MissingPackage(ImproperlyConfigured, ClickException):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, extra: str) -> None:
        ClickException.__init__(
            self,
            f"{what} needs a package that is not installed: "
            f"pip install 'celery-resilience[{extra}]'",
        )


def __getattr__(name: str) -> Any:
    if name == "RedisTransport":
        raise MissingPackage("a broker on Redis", "redis")
    if name == "RedisBackend":
        raise MissingPackage("a result backend on Redis", "redis")
    raise AttributeError(name)
