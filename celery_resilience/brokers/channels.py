"""RabbitMQ: a channel that it has closed, and that py-amqp has opened again without a word.

RabbitMQ has taken back all that it had delivered there: none of it can be let go of any more.
"""

from __future__ import annotations

from typing import Any

__all__ = ["is_alive", "notice_reopening"]

#: Set on a channel that was closed and opened again.
_REOPENED = "_resilience_reopened"


def notice_reopening(channel: Any) -> None:
    """Remember it if the py-amqp *channel* is closed, though it is open again afterwards."""
    again = channel.open

    def open_() -> None:
        setattr(channel, _REOPENED, True)
        again()

    channel.open = open_


def is_alive(message: Any) -> bool:
    """Whether *message* can still be let go of: its channel has been open all the time."""
    channel = message.channel
    if getattr(channel, _REOPENED, False) or getattr(channel, "closed", False):
        return False
    return bool(getattr(channel, "is_open", True))
