"""A pytest plugin: every connection to a Redis goes through our transport, as a worker's does."""

from __future__ import annotations

from typing import Any

import kombu
from kombu.connection import Connection

from celery_resilience.transport.selection import standing_in

Ours: Any = standing_in(Connection)


class Everybodys(Ours):  # type: ignore[misc]
    """In place of kombu's own class, whoever asks for it."""


kombu.Connection = kombu.connection.Connection = Everybodys
