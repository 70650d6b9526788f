"""Ctrl-C and its kin, heeded where the demo can end in good order."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Signals"]


class Interrupted(Exception):
    """The demo was told to end, by the signal *number*."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Remembers a signal until it is asked for, so that none comes between two lines of a
    clean-up."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._received is not None:
            raise Interrupted(self._received)

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
