"""What was published to RabbitMQ and is not confirmed yet, and what becomes of it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery_resilience.brokers.base import Done, Unroutable
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope

__all__ = ["Published", "UnconfirmedMessages"]

#: The headers that, with its body, tell a message from others.
_NAMES_IT = ("id", "retries")


@dataclass
class Published:
    """A message that RabbitMQ may have or not."""

    copy: Envelope
    exchange: str
    routing_key: str
    done: Done
    #: When it was sent, by the monotonic clock.
    since: float = field(default_factory=time.monotonic)
    returned: bool = False

    @property
    def to(self) -> str:
        """The exchange or the queue, for a person."""
        return self.exchange or self.routing_key


class UnconfirmedMessages:
    """The messages that were published on one channel, by the number that RabbitMQ confirms."""

    def __init__(self) -> None:
        self._published: OrderedDict[int, Published] = OrderedDict()
        self._number = 0
        #: A message is being sent; answers that come meanwhile are told afterwards.
        self._sending = False
        self._held_back: list[tuple[Done, BaseException | None]] = []

    def __len__(self) -> int:
        return len(self._published)

    def __contains__(self, number: int) -> bool:
        return number in self._published

    @property
    def sending(self) -> bool:
        """Whether a message is being sent just now."""
        return self._sending

    def longer_than(self, seconds: float) -> bool:
        """Whether the oldest is unconfirmed for longer."""
        oldest = next(iter(self._published.values()), None)
        return oldest is not None and time.monotonic() - oldest.since > seconds

    def wait_anew(self) -> None:
        """RabbitMQ reads again, or not for now: what it was given before counts from here on."""
        for published in self._published.values():
            published.since = time.monotonic()

    def begin(self) -> None:
        """A channel was opened, which counts from 1 again."""
        self._number = 0

    @contextmanager
    def send(self, published: Published) -> Iterator[int]:
        """Count *published*, which is sent within; not if that raises."""
        self._number += 1
        number = self._number
        self._published[number] = published
        self._sending = True
        try:
            yield number
        except BaseException:
            self._published.pop(number, None)
            raise
        finally:
            self._sending = False
            self._tell_held_back()

    def fail(self, why: BaseException) -> None:
        """The channel has gone: no word comes any more of unconfirmed messages."""
        failed, self._published = self._published, OrderedDict()
        for published in failed.values():
            published.done(why)

    # What RabbitMQ answers

    def on_ack(self, tag: int, multiple: bool) -> None:
        """RabbitMQ has them, or has sent them back before."""
        for published in self._answered(tag, multiple):
            gone = Unroutable(f"there is no queue {published.to}") if published.returned else None
            self._tell(published.done, gone)

    def on_nack(self, tag: int, multiple: bool) -> None:
        """RabbitMQ does not take them."""
        for published in self._answered(tag, multiple):
            full = BrokerError(f"{published.to} refused it: it is full or unavailable")
            self._tell(published.done, full)

    def on_return(self, exchange: str, routing_key: str, message: Any) -> None:
        """RabbitMQ knows no queue for *message*; its confirm follows.

        It does not say which number that is: a queue that is deleted and made again has taken the
        ones before it. If in doubt, all of them count as returned.
        """
        there = [
            published
            for published in self._published.values()
            if (published.exchange, published.routing_key) == (exchange, routing_key)
            and not published.returned
        ]
        same = [published for published in there if _is_copy(message, published.copy)]
        for published in same[:1] or there:
            published.returned = True

    def _answered(self, tag: int, multiple: bool) -> list[Published]:
        numbers = [n for n in self._published if n <= tag] if multiple else [tag]
        found = [self._published.pop(n, None) for n in numbers]
        return [published for published in found if published is not None]

    def _tell(self, done: Done, problem: BaseException | None) -> None:
        """Call *done*, but not while a message is being sent: it may want to publish itself, and
        would take the number that an unconfirmed one was given."""
        if self._sending:
            self._held_back.append((done, problem))
        else:
            done(problem)

    def _tell_held_back(self) -> None:
        while self._held_back and not self._sending:
            done, problem = self._held_back.pop(0)
            done(problem)


def _is_copy(message: Any, copy: Envelope) -> bool:
    """Whether the *message* that came back is the one that *copy* was sent as."""
    body = copy.body.encode() if isinstance(copy.body, str) else copy.body
    came = message.body.encode() if isinstance(message.body, str) else message.body
    headers = message.headers or {}
    return bool(came == body) and all(headers.get(k) == copy.headers.get(k) for k in _NAMES_IT)
