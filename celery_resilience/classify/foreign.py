"""Calling and reading what others have made, without being hurt by what it raises.

An exception's attributes, a policy's functions and a hook may raise anything, ``SystemExit``
among it. That is a fault like any other. What a worker or its pool raises into whatever runs just
then, to end it, is not: that has to get through.
"""

from __future__ import annotations

from logging import Logger
from typing import Any

__all__ = ["is_the_workers", "let_through", "log_raised", "shown"]

_ENDS_THE_WORKER = frozenset({"WorkerShutdown", "WorkerTerminate"})


def is_the_workers(exc: BaseException, limits: Any = None, limit: Any = None) -> bool:
    """Whether *exc* is for the worker, not about the task: shutdown, a greenlet's end or limit.

    *limits* are those of the message (hard, soft) and *limit* is the task's hard one: without
    any, a green library's Timeout is the body's own.
    """
    if isinstance(exc, GeneratorExit) or _is_killed(exc):
        return True
    module, name = type(exc).__module__, type(exc).__name__
    if name in _ENDS_THE_WORKER and module == "celery.exceptions":
        return True
    if not module.startswith(("gevent", "eventlet", "greenlet")):
        return False
    return name == "GreenletExit" or bool((limits or (None, None))[0] or limit)


def let_through(exc: BaseException) -> None:
    """Raise *exc*, which user code has ended in, if it is not the user code's."""
    if not isinstance(exc, Exception) and is_the_workers(exc, limit=True):
        raise exc


def log_raised(logger: Logger, exc: BaseException, text: str, *args: object) -> None:
    """Log an ERROR with the traceback of *exc*, or without it if it can't be shown.

    It may have been raised while one was handled that raises when it is looked at.
    """
    try:
        logger.error(text, *args, exc_info=exc)
    except BaseException as problem:
        let_through(problem)
        logger.error(f"{text} (%s)", *args, type(exc).__name__)


def shown(value: object, limit: int) -> str:
    """The repr of *value* in at most *limit* characters, whatever its class does."""
    try:
        text = repr(value)
    except BaseException as exc:
        let_through(exc)
        text = f"a {type(value).__name__} whose repr fails"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _is_killed(exc: BaseException) -> bool:
    """Whether it is the exit of a child that was told to end, by a hard limit or a revocation."""
    tb = exc.__traceback__ if isinstance(exc, SystemExit) else None
    while tb is not None:
        code, module = tb.tb_frame.f_code, tb.tb_frame.f_globals.get("__name__")
        if (module, code.co_name) == ("billiard.common", "_shutdown_cleanup"):
            return True
        tb = tb.tb_next
    return False
