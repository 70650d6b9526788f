"""The worker's event loop: calls from other threads, calls for later, and whether it runs."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.worker import state

__all__ = ["WorkerLoop"]

#: The state of a worker whose loop runs; the stubs do not know it.
_RUN: int = bootsteps.RUN  # type: ignore[attr-defined]


class WorkerLoop:
    """The loop of one worker's consumer, over all of its connections."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._thread = threading.get_ident()
        #: What other threads than the loop's want to have done there.
        self._posted: deque[Callable[[], None]] = deque()
        self._wake: tuple[int, int] | None = None

    @property
    def looping(self) -> bool:
        """Whether it runs: before and after, everything is done at once."""
        return bool(self._consumer.blueprint.state == _RUN)

    @property
    def ending(self) -> bool:
        """Whether the worker has been told to end."""
        told = (state.should_stop, state.should_terminate)
        if any(each is not None and each is not False for each in told):
            return True
        return bool(self._consumer.controller.blueprint.state != _RUN)

    def is_here(self) -> None:
        """The calling thread is the loop's, from now on."""
        self._thread = threading.get_ident()

    def watch(self, hub: Any) -> None:
        """Let *hub*, the worker's event loop, run what other threads post."""
        if self._wake is None:
            self._wake = os.pipe()
            for end in self._wake:
                os.set_blocking(end, False)
        hub.add_reader(self._wake[0], self.run_posted)

    def start_again(self, request: Any, delay: float) -> None:
        """Let the worker start *request*, which has its slot in the pool, in *delay* seconds."""
        self.call_after(delay, self._consumer.controller._process_task, request)

    def call_after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call *call* in *delay* seconds, in the loop; its own thread says so."""
        self._consumer.timer.call_after(delay, call, args)

    def in_loop(self, call: Callable[[], None]) -> None:
        """Have *call* done in the thread of the loop while that runs, else here."""
        if self._wake is None or not self.looping or threading.get_ident() == self._thread:
            call()
            return
        self._posted.append(call)
        with suppress(BlockingIOError):  # the pipe is full: the loop is awake already
            os.write(self._wake[1], b"!")

    def run_posted(self) -> None:
        """Do what other threads have posted."""
        if self._wake is not None:
            with suppress(BlockingIOError):
                os.read(self._wake[0], 65536)
        while self._posted:
            self._posted.popleft()()

    def close(self) -> None:
        """Close the wake-up pipe."""
        if self._wake is not None:
            for end in self._wake:
                os.close(end)
            self._wake = None
