"""Nothing but the tasks: for what looks at a worker from outside."""

from __future__ import annotations

from tests.ecosystem.apps.base import make

app = make("eco")
