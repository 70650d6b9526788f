"""What a command has to say beside its answer."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["warnings_shown"]


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Print what is logged as a warning on stderr, unless the app has its own way to log.

    Celery gives its loggers a handler that drops all, and sets up others in workers alone.
    """
    logger = logging.getLogger("celery_resilience")
    if _is_heard(logger):
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _is_heard(logger: logging.Logger | None) -> bool:
    while logger is not None:
        if any(not isinstance(each, logging.NullHandler) for each in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
