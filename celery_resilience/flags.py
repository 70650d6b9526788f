"""The worker's flags, in a help group of their own; each has a setting of the same name."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryOption

__all__ = ["add_flags"]

_GROUP = "Resilience Options"


def add_flags(app: Any) -> None:
    """Teach ``celery -A app worker`` our flags; calling it again changes nothing."""
    options = app.user_options["worker"]
    known = {name for option in options for name in getattr(option, "opts", ())}
    for option in _flags():
        if option.opts[0] not in known:
            options.add(option)


def _flags() -> list[Any]:
    return [
        CeleryOption(
            ("--dead-letter-queue",),
            metavar="QUEUE",
            default=None,
            help_group=_GROUP,
            help="Route dead letters to QUEUE; {queue} is filled in. "
            "[setting: resilience_dead_letter_queue]",
        ),
        CeleryOption(
            ("--max-worker-losses",),
            type=click.IntRange(min=1),
            metavar="N",
            default=None,
            help_group=_GROUP,
            help="Make a message that has killed N workers a dead letter. "
            "[setting: resilience_max_worker_losses]",
        ),
    ]
