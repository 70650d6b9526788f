"""RabbitMQ: looking at what lies in a queue, which has no word for that.

A look consumes, and gives all of it back. A quorum queue counts that as a delivery, and destroys
what was delivered more often than its limit says; a policy may set one, RabbitMQ 4 has one of its
own, and no client can ask for it. So before anything is returned that was returned before, the
limit is found out with one message of which a copy has been written; and what would not survive is
rewritten.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from amqp.exceptions import ChannelError
from amqp.spec import Basic

from celery_resilience.brokers.rabbitmq import queues
from celery_resilience.brokers.rabbitmq.connection import SHORT
from celery_resilience.brokers.rabbitmq.delay import word
from celery_resilience.brokers.rabbitmq.publisher import ConfirmingPublisher
from celery_resilience.errors import BrokerError
from celery_resilience.messages.dead_letter import written_anew
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.identity import digest_of

__all__ = ["QueueBrowser", "mark_of"]

logger = logging.getLogger("celery_resilience")

#: How long a queue is waited for that has said it has more messages, in seconds.
_QUIET = 2.0
#: How long one is waited for that has handed out all that it counts, in seconds.
_AT_THE_END = 0.2
#: A quorum queue's count of the times that a message has come back.
_COUNT = "x-delivery-count"
#: How often one has to survive that: this time, and once more should the next look be killed.
_SPARE = 2
#: What has come back so often is rewritten in any case: to try for more takes its time.
_TIRED = 50
#: How long what was returned may take to be there again, in seconds; else it is gone.
_BACK = 0.5


def mark_of(queue: str) -> str:
    """The queue whose consumers are those who read *queue*, or are still returning it."""
    return f"celery_resilience.looks.{word(queue)}"


class QueueBrowser:
    """Messages of *queue* that RabbitMQ has lent us, on a channel of their own.

    Should we die, it closes and RabbitMQ takes everything back.
    """

    def __init__(self, publisher: ConfirmingPublisher, queue: str) -> None:
        self._publisher = publisher
        self._queue = queue
        self._mark = self._leave_a_mark()
        self._channel = publisher.link.connection.channel()
        self._tag: Any = None
        #: Those that were handed on, and those that wait for that.
        self._held: list[Any] = []
        self._arrived: list[Any] = []
        #: The copy of the one that is tried, if it came before the original was back.
        self._first_copy: Any = None

    def messages(self) -> Iterator[Any]:
        """All of them, the oldest first; those that are not acknowledged stay lent."""
        connection = self._publisher.link.connection
        there = queues.size(connection, self._queue) or 0
        self._channel.basic_qos(0, 0, False)
        self._tag = self._channel.basic_consume(self._queue, callback=self._arrived.append)
        while True:
            if not self._arrived:
                # What was returned a moment ago may not be counted yet.
                quiet = _QUIET if len(self._held) < there else _AT_THE_END
                try:
                    connection.drain_events(timeout=quiet)
                except TimeoutError:
                    break
                continue
            message = self._channel.message_to_python(self._arrived.pop(0))
            self._held.append(message)
            yield message

    def requeue(self) -> None:
        """Return what was read, and wait until it is there for the next one to read."""
        if not self._channel.is_open:
            return
        self._channel.basic_cancel(self._tag)  # what is on its way has arrived afterwards
        self._held += map(self._channel.message_to_python, self._arrived)
        self._arrived.clear()
        self._spare()
        lent = sum(not message.acknowledged for message in self._held)
        # All in one go, and before the channel closes: a quorum queue takes back what was
        # rejected one by one, or with the channel, in any order.
        if lent:
            self._channel.send_method(Basic.Nack, "Lbb", (0, True, True))
        self._channel.close()
        until = time.monotonic() + _QUIET
        while time.monotonic() < until:
            if (queues.size(self._publisher.link.connection, self._queue) or 0) >= lent:
                break
            time.sleep(0.01)
        if self._mark is not None:
            self._mark.close()

    def _leave_a_mark(self) -> Any:
        """A channel that tells others of us, until it is closed; None if we may not."""
        channel = self._publisher.link.connection.channel()
        try:
            channel.queue_declare(
                mark_of(self._queue), durable=True, auto_delete=True,
                arguments={"x-queue-type": "classic"},
            )  # fmt: skip
            channel.basic_consume(mark_of(self._queue), no_ack=True)
        except ChannelError as exc:
            logger.debug("other commands cannot see that %s is being read: %r", self._queue, exc)
            return None
        return channel

    # What would not survive being returned

    def _spare(self) -> None:
        """Rewrite, copy first, what the queue would destroy if it were returned."""
        left = [message for message in self._held if not message.acknowledged]
        most = max(map(_times, left), default=0)
        if most < 1:  # nothing has come back before
            return
        try:
            self._spare_those(left, most)
        except Exception as exc:
            logger.warning(
                "%s: letters that were read cannot be rewritten (%s: %s): a queue with a delivery "
                "limit may destroy letters that are read too often",
                self._queue, type(exc).__name__, exc,
            )  # fmt: skip

    def _spare_those(self, left: list[Any], most: int) -> None:
        """Find out, with one of *left*, what the limit is; none was returned more than *most*
        times. It is the one at that end where fresh messages come to lie, beside what is given
        back: before it on RabbitMQ 3, where no limit is set, and behind it on 4. So all keep their
        order."""
        in_front = self._fresh_come_first()
        tried, *others = left if in_front else reversed(left)
        copy = self._copy(tried)
        self._publish([copy])
        safe = most + _SPARE
        seen = self._try(tried, safe, copy)
        if seen == safe and most < _TIRED:
            if self._first_copy is None:
                return
            endangered: list[Any] = []  # but it has been taken from its place
        else:
            last = 1 if seen == safe else max(1, seen + 1 - _SPARE)
            # All up to the last one of them, for the sake of their order.
            survive = itertools.takewhile(lambda each: _times(each) < last, reversed(others))
            endangered = others[: len(others) - len(list(survive))]
            self._first_copy = self._first_copy or self._next(lambda found: _is(found, copy))
        fresh = [copy, *map(self._copy, endangered)]
        self._publish(fresh if in_front else fresh[::-1])
        for message in endangered:
            message.ack()
        if self._first_copy is not None:
            self._channel.basic_ack(self._first_copy.delivery_tag)

    def _fresh_come_first(self) -> bool:
        version = str(self._channel.connection.server_properties.get("version", ""))
        return version.startswith("3.")

    def _try(self, message: Any, wanted: int, copy: Envelope) -> int:
        """Give *message*, of which there is a *copy*, back again and again, and remove it in the
        end; how often it had come back when it was last seen: *wanted* times or the queue's limit.
        """
        times, tag = _times(message), message.delivery_tag
        digest = digest_of(Envelope.received(message, self._queue))

        def is_it(found: Any, times: int) -> bool:
            """Others that were lent may come back meanwhile, as often as it."""
            if _times(found) != times:
                return False
            again = self._channel.message_to_python(found)
            return digest_of(Envelope.received(again, self._queue)) == digest

        while times < wanted:
            self._channel.basic_reject(tag, requeue=True)
            again = self._next(lambda found: is_it(found, times + 1), copy)  # noqa: B023
            if again is None:
                return times
            times, tag = times + 1, again.delivery_tag
        self._channel.basic_ack(tag)
        return times

    def _next(self, meant: Callable[[Any], bool], copy: Envelope | None = None) -> Any:
        """The next message that no consumer holds and that is *meant*; None if none comes.

        Others, and the *copy*, which is kept for later, go back with the rest.
        """
        until = time.monotonic() + _BACK
        while time.monotonic() < until:
            found = self._channel.basic_get(self._queue)
            if found is None:
                time.sleep(0.01)
            elif meant(found):
                return found
            elif copy is not None and _is(found, copy):
                self._first_copy = found
        return None

    def _copy(self, message: Any) -> Envelope:
        return written_anew(Envelope.received(message, self._queue))

    def _publish(self, copies: list[Envelope]) -> None:
        """Put *copies* into the queue; raises if one of them is not confirmed."""
        problems: list[BaseException | None] = []
        with self._publisher.pipelined():
            for copy in copies:
                self._publisher.publish(copy, "", self._queue, problems.append)
        for problem in problems:
            if problem is not None:
                raise problem
        if len(problems) < len(copies):
            raise BrokerError(SHORT)


def _is(found: Any, copy: Envelope) -> bool:
    return bool((found.headers or {}).get(HEADER) == copy.headers[HEADER])


def _times(message: Any) -> int:
    times = (message.headers or {}).get(_COUNT)
    return times if isinstance(times, int) else 0
