"""Headers and properties of a message: ours, the brokers' own, and which of them travel on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "ASTRAY",
    "BROKERS_OWN",
    "DEATHS",
    "DELAY",
    "DUE",
    "HEADER",
    "MOST_HEADERS",
    "NOT_PROPERTIES",
    "QUEUE",
    "compact",
    "has_waited",
    "header_in",
    "without",
]

#: Where a virtual transport's payload says, within this process, which queue it came out of.
QUEUE = "resilience-queue"

#: The one header of ours: a JSON object, read and written by ``history`` and ``letter``.
HEADER = "celery_resilience"
#: RabbitMQ takes headers and properties in one frame, of 128 KB at most; some room is left for
#: its own bookkeeping.
MOST_HEADERS = 120_000

#: The exchange, and the queue behind it, of what has no other place in RabbitMQ: a retry whose
#: queue has gone with its dead-letter queue, the copy of a letter that is read.
ASTRAY = "celery_resilience.astray"
#: The exchange that a retry which has waited in RabbitMQ comes through, into its queue.
DUE = "celery_resilience.due"
#: What the names of the exchanges and queues begin with in which a retry waits before.
DELAY = "celery_resilience.delay."

#: Headers that are for brokers. Copied on, they make RabbitMQ see a cycle and drop the message,
#: count deliveries that were another message's, or route the copy to more queues than its own.
BROKERS_OWN = frozenset(
    {
        "BCC",
        "CC",
        "redelivered",
        "x-acquired-count",
        "x-death",
        "x-delivery-count",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
        "x-opt-deaths",
    }
)

#: Those of them in which RabbitMQ records each time that it has dead-lettered a message.
DEATHS = ("x-death", "x-opt-deaths")

#: Properties that belong to one delivery, or that stand in a field of their own. ``expiration``
#: is RabbitMQ's own clock: it would drop a copy with no worker there to see it. The ``expires``
#: field, which every worker obeys, says the same and stays. ``user_id`` has to be the name that
#: the publisher has logged in with, which is now another.
NOT_PROPERTIES = frozenset(
    {
        "application_headers",
        "body_encoding",
        "content_encoding",
        "content_type",
        "delivery_info",
        "delivery_tag",
        "expiration",
        "user_id",
    }
)


def has_waited(exchange: object) -> bool:
    """Whether a message that comes through *exchange* is a retry that has waited in RabbitMQ.

    It names the exchange below the last level that the message has waited in, which is the last one
    of all only where its delay is an odd number of seconds.
    """
    return isinstance(exchange, str) and (exchange == DUE or exchange.startswith(DELAY))


def header_in(fields: Mapping[str, Any]) -> Any:
    """Our header among the *fields* that Celery has made of a message: its place depends on the
    message's protocol."""
    told = fields.get(HEADER)
    return (fields.get("headers") or {}).get(HEADER) if told is None else told


def without(mapping: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A copy of *mapping* without *names*."""
    return {name: value for name, value in mapping.items() if name not in names}


def compact(data: Any, dumps: Callable[..., str] = json.dumps) -> str:
    """*data* as JSON in UTF-8, without blanks; in ASCII where a lone surrogate is in it, which
    UTF-8 can't say."""
    text = dumps(data, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return dumps(data, separators=(",", ":"))
    return text
