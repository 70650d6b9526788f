"""Ways for a body to end that no framework expects; each is called with the task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

__all__ = ["EXOTIC"]


class Own(BaseException):
    """Of no family."""


class CannotBePickled(Exception):
    """As exceptions that hold a lock, a socket or a file."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.file = open(os.devnull)  # noqa: SIM115


class ReduceRaises(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("__reduce__")


class StrRaises(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("__str__")


class ReprRaises(Exception):
    def __repr__(self) -> NoReturn:
        raise RuntimeError("__repr__")


class AllRaise(StrRaises, ReprRaises, ReduceRaises):
    def __getstate__(self) -> NoReturn:
        raise RuntimeError("__getstate__")


class StrEnds(Exception):
    """The worst of them."""

    def __str__(self) -> NoReturn:
        raise SystemExit("__str__")


class NeedsTwo(Exception):
    """Pickles, and does not come back: its constructor takes what it does not keep."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first}{second}")


def raises(make: Callable[[], BaseException]) -> Callable[[Any], NoReturn]:
    def body(task: Any) -> NoReturn:
        raise make()

    return body


def deep(task: Any) -> NoReturn:
    """10,000 frames, in steps that leave the C stack alone."""
    sys.setrecursionlimit(20_000)

    def down(left: int) -> None:
        if left == 0:
            raise ValueError("at the bottom")
        down(left - 1)

    try:
        down(10_000)
    finally:
        sys.setrecursionlimit(1_000)
    raise AssertionError


def endless(task: Any) -> Any:
    return endless(task)


def long_chain(task: Any) -> NoReturn:
    error: BaseException = ValueError("the first")
    for number in range(2_000):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    raise error


def own_cause(task: Any) -> NoReturn:
    error = ValueError("its own cause")
    other = ValueError("the other")
    error.__cause__, other.__cause__ = other, error
    raise error


def bad_result(task: Any) -> Any:
    """No serializer takes it."""
    return object()


EXOTIC: dict[str, Callable[[Any], Any]] = {
    "MemoryError": raises(lambda: MemoryError("a list too long")),
    "SystemExit": raises(lambda: SystemExit(3)),
    "SystemExit-text": raises(lambda: SystemExit("bye")),
    "KeyboardInterrupt": raises(KeyboardInterrupt),
    "GeneratorExit": raises(GeneratorExit),
    "StopIteration": raises(StopIteration),
    "BaseException": raises(lambda: Own("own")),
    "unpicklable": raises(lambda: CannotBePickled("x")),
    "reduce": raises(lambda: ReduceRaises("x")),
    "str": raises(lambda: StrRaises("x")),
    "repr": raises(lambda: ReprRaises("x")),
    "all": raises(lambda: AllRaise("x")),
    "str-exits": raises(lambda: StrEnds("x")),
    "needs-two": raises(lambda: NeedsTwo("a", "b")),
    "10MB": raises(lambda: ValueError("é" * 5_000_000)),
    "surrogates": raises(lambda: ValueError("\ud800 \x00 \udcff")),
    "deep": deep,
    "endless": endless,
    "long-chain": long_chain,
    "own-cause": own_cause,
    "group": raises(
        lambda: ExceptionGroup("both", [ValueError("x"), ExceptionGroup("in", [OSError("y")])])
    ),
}
