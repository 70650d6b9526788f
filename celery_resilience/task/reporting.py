"""Error trackers that make an event of each ERROR line: of ours they get one for each letter.

A body's failure is told to them by its exception, which went through whatever they have wrapped
around the body. So the line about its letter goes to a logger of its own, which Sentry is asked to
ignore. Of what only the worker's main process knows, the line is the event.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["SEEN", "logger_of_letters"]

#: Logs letters whose exception was reported before.
SEEN = "celery_resilience.bodies"


def logger_of_letters(seen: bool) -> logging.Logger:
    """Where a letter is told; *seen* says that its exception has come out of the body."""
    if not seen:
        return logging.getLogger("celery_resilience")
    # Asked each time: it may be loaded at any time, and has to be told once.
    sentry = sys.modules.get("sentry_sdk.integrations.logging")
    if sentry is not None:
        sentry.ignore_logger(SEEN)
    return logging.getLogger(SEEN)
