"""The table: how long each API call may take, and what its failures deserve.

Which failures are worth a retry is not in here: the classifier reads httpx's and OpenAI's
exceptions by what they carry. A timeout, a lost connection and a 5xx are retried under these
limits; a 429 waits as long as its ``Retry-After`` says and uses up no retry; a 400 is a dead
letter at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import httpx

from celery_resilience import Policy

__all__ = ["CALLS", "CONNECT", "SPEEDUP", "Call"]

#: No connection may take longer, in seconds.
CONNECT = 10.0
#: No wait before a retry is longer, in seconds, unless the service asks for it.
MAX_DELAY = 30.0
#: So many times faster than the table: 20 in this example's command, 1 where it is meant.
SPEEDUP = float(os.environ.get("SONG_SPEEDUP", "1"))


@dataclass(frozen=True)
class Call:
    """One row of the table."""

    #: How long the call may take, in seconds.
    total: float
    policy: Policy

    def options(self) -> dict[str, Any]:
        """What the task takes: ``@app.task(**LYRICS.options())``."""
        policy = self.policy
        assert policy.max_elapsed is not None
        return {
            "failure_policy": policy.replace(
                backoff=policy.backoff / SPEEDUP,
                backoff_max=policy.backoff_max / SPEEDUP,
                max_elapsed=policy.max_elapsed / SPEEDUP,
            ),
            # httpx counts every read anew: a service that sends a byte now and then is never
            # too slow for it. This is the limit for all of them, and for connecting before.
            "soft_time_limit": (CONNECT + self.total) / SPEEDUP,
        }

    def timeout(self, of: type[Any] = httpx.Timeout) -> Any:
        """What the HTTP client takes."""
        return of(self.total / SPEEDUP, connect=CONNECT / SPEEDUP)


def _retries(number: int, backoff: float, **limits: Any) -> Policy:
    # No jitter, so that the waits are the table's own. Take it out where songs are many.
    return Policy(
        max_retries=number, backoff=backoff, backoff_max=MAX_DELAY, jitter="none", **limits
    )


#: A song or a video that takes longer than this, in seconds, never comes.
PATIENCE = 600.0

CALLS = {
    "ChatGPT lyrics": Call(60, _retries(3, backoff=2)),
    "Suno generate": Call(30, _retries(3, backoff=1)),
    "Suno status": Call(30, _retries(2, backoff=1, max_elapsed=PATIENCE)),
    "Suno timestamps": Call(120, _retries(2, backoff=2)),
    "Creatomate template": Call(30, _retries(2, backoff=1)),
    "Creatomate render": Call(60, _retries(3, backoff=1)),
    "Creatomate status": Call(30, _retries(2, backoff=1, max_elapsed=PATIENCE)),
}
