"""A call that is left behind in its thread when it takes too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["within"]

T = TypeVar("T")


def within(
    seconds: float,
    call: Callable[[], T],
    what: str,
    late: Callable[[Any], None] = lambda result: None,
) -> T:
    """What *call* returns or raises; TimeoutError, which names *what*, after *seconds*.

    A name server that does not answer, or a disk that has gone, can't be interrupted. *late* gets
    what is returned after all.
    """
    result: list[T] = []
    raised: list[BaseException] = []
    lock, given_up = threading.Lock(), False

    def run() -> None:
        try:
            found = call()
        except BaseException as exc:
            raised.append(exc)
            return
        with lock:
            if not given_up:
                result.append(found)
                return
        with suppress(Exception):
            late(found)

    thread = threading.Thread(target=run, name="celery_resilience.within", daemon=True)
    thread.start()
    thread.join(seconds)
    with lock:
        given_up = not (result or raised)
    if given_up:
        raise TimeoutError(f"{what} has not answered for {seconds:g} s")
    if raised:
        raise raised[0]
    return result[0]
