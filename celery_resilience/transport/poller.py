"""Waiting on many sockets at once: kombu's poller for Redis, taught to look instead of to pop."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from queue import Empty
from threading import get_ident
from time import monotonic
from typing import Any

from kombu.transport import redis as _kombu_redis
from kombu.utils.compat import detect_environment

_redis: Any = _kombu_redis  # the stubs miss half of it

__all__ = ["Poller"]

#: The kinds of sockets that are ours, beside kombu's LISTEN.
_OURS = ("FETCH", "NOTIFY")

#: The most messages that are delivered before the loop gets to do something else.
_AT_ONCE = 100
#: How often kombu's sweep of what others left unacknowledged may be begun, in seconds.
_SWEEP = 1.0
#: Where greenlets acknowledge, they need a turn for it; how long we may keep them waiting. Nor do
#: threads tell when they are free.
_TURN = 0.02


class Poller(_redis.MultiChannelPoller):  # type: ignore[misc]
    """Looks after the channels of one connection, with Celery's event loop or without."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: Any = None
        #: The thread that polls: what it acknowledges is sent when it comes back here.
        self.thread = 0
        self._ours: dict[tuple[Any, str], tuple[Any, int]] = {}
        self._timers: list[Any] = []
        #: A pipe that ends the loop's wait: there is more to deliver.
        self._nudge: tuple[int, int] | None = None
        #: When the loop comes round for this.
        self._back_at = math.inf
        self._swept = monotonic()

    # With an event loop

    def use(self, loop: Any) -> None:
        """Work within *loop*: called once per connection, before it runs."""
        self.loop = loop
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._nudge = reading, writing
        loop.add_reader(reading, self._read_nudge)
        # A tick follows whatever a timer does.
        self._timers.append(loop.call_repeatedly(1.0, _nothing))

    def _read_nudge(self) -> None:
        if self._nudge is not None:
            with suppress(BlockingIOError):
                os.read(self._nudge[0], 4096)
        for channel in self._consuming():
            channel.deliver(_AT_ONCE)

    def on_poll_start(self) -> None:
        """Called before every wait: more messages are fetched.

        What was taken is delivered after the wait, which then is none: the worker's pool may have
        had its turn in this tick.
        """
        self.thread = get_ident()
        self._listen()
        for channel in self._consuming():
            if channel.was_replaced():
                channel.fetch_soon()
            channel.come_round()
            channel.fetch()
            if channel.undelivered:
                self.nudge()
            if channel.waits_for_slot:
                self._come_back(_TURN)
            elif channel.is_told_nothing:
                self._come_back(channel.idle())

    def _come_back(self, delay: float) -> None:
        """Have the loop come round in *delay* seconds."""
        now = monotonic()
        at = now + delay
        if at < self._back_at or self._back_at < now:
            self._back_at = at
            self.loop.call_later(delay, self._is_back)

    def _is_back(self) -> None:
        self._back_at = math.inf

    def nudge(self) -> None:
        """End the loop's wait."""
        if self._nudge is not None:
            with suppress(BlockingIOError):
                os.write(self._nudge[1], b"!")

    def on_readable(self, fileno: int) -> Any:
        """Called by the loop."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind in _OURS:
            return self._heard(channel, kind)
        if channel is None:  # an event of a socket that has gone meanwhile
            return None
        return super().on_readable(fileno)

    def _heard(self, channel: Any, kind: str) -> None:
        if kind == "FETCH":
            channel.answered()
            if self.loop is not None:
                channel.deliver(_AT_ONCE)
            return
        pause = channel.woken()
        if self.loop is not None and pause:
            self.loop.call_later(pause, _nothing)

    # Without one

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver one message, or raise Empty after *timeout* seconds at most."""
        self._in_protected_read = True
        self.thread = get_ident()
        try:
            # kombu 5.7: without a loop there is no timer for it.
            getattr(self, "maybe_refresh_binding_expiry", _nothing)()
            self._listen()
            for channel in self._consuming():
                if channel.was_replaced():
                    channel.fetch_soon()
                channel.come_round()
            if self._deliver_one():
                return
            green = detect_environment() != "default" and self._full()
            events = self.poller.poll(self._patience(timeout, green))
            for fileno, event in events or ():
                channel, kind = self._fd_to_chan.get(fileno, (None, None))
                if kind in _OURS:
                    self._heard(channel, kind)
                elif self.handle_event(fileno, event):
                    return
            if green or (events and self._deliver_one()):
                return
            if monotonic() - self._swept >= _SWEEP:
                self._swept = monotonic()
                self.maybe_restore_messages()
            raise Empty
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()

    def _deliver_one(self) -> bool:
        for channel in self._consuming():
            if channel.deliver(1):
                return True
            if channel.fetch():
                channel.all_answered()
                if channel.deliver(1):
                    return True
        return False

    def _patience(self, timeout: float | None, green: bool) -> float | None:
        waits = [channel.idle() for channel in self._consuming()]
        waits += [] if timeout is None else [timeout]
        waits += [_TURN] if green else []
        return min(waits, default=None)

    def _full(self) -> bool:
        """Whether nothing can be delivered before something ends."""
        return any(channel.is_full for channel in self._consuming())

    # Channels and their sockets

    def _consuming(self) -> list[Any]:
        return [channel for channel in self._channels if channel.active_queues]

    def _listen(self) -> None:
        for channel in list(self._channels):
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def watch(self, channel: Any, kind: str, sock: Any) -> None:
        """Wait for *sock*, which is *channel*'s of that *kind*."""
        if self._ours.get((channel, kind), (None, 0))[0] is sock:
            return
        self.unwatch(channel, kind)
        number = sock.fileno()
        self._fd_to_chan[number] = (channel, kind)
        self._ours[channel, kind] = sock, number
        if self.loop is not None:
            self.loop.add_reader(number, self.on_readable, number)
        else:
            self.poller.register(number, self.eventflags)

    def unwatch(self, channel: Any, kind: str) -> None:
        """Wait for it no longer; before it is closed."""
        sock, number = self._ours.pop((channel, kind), (None, -1))
        if self._fd_to_chan.get(number) != (channel, kind):
            return
        del self._fd_to_chan[number]
        if sock.fileno() != number:  # closed meanwhile: the number may be another socket's
            return
        with suppress(KeyError, ValueError, OSError, AttributeError):
            if self.loop is not None:
                self.loop.remove(number)
            else:
                self.poller.unregister(number)

    @property
    def fds(self) -> dict[int, Any]:
        """What kombu adds to the loop at every tick; ours are there already."""
        known = self._fd_to_chan.items()
        return {fd: owner for fd, owner in known if owner[1] not in _OURS}

    def discard(self, channel: Any) -> None:
        for kind in _OURS:
            self.unwatch(channel, kind)
        super().discard(channel)

    def close(self) -> None:
        for channel in list(self._channels):
            for kind in _OURS:
                self.unwatch(channel, kind)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._nudge is not None:
            with suppress(KeyError, ValueError, OSError, AttributeError):
                self.loop.remove(self._nudge[0])
            for end in self._nudge:
                os.close(end)
            self._nudge = None
        super().close()


def _nothing() -> None:
    pass
