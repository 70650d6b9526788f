"""A channel of our Redis transport: it fetches from its queues when there is something in them."""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Any

from kombu.utils.json import dumps

from celery_resilience.brokers.connections import ANSWER
from celery_resilience.brokers.redis.scripts import KEYS, lua
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.policy.decision import Reason
from celery_resilience.transport.fetching import FetchingChannel
from celery_resilience.transport.prefetched import Message, Prefetched, QoS, Undecodable

__all__ = ["Channel"]

logger = logging.getLogger("celery_resilience")

#: How long messages are delivered before the loop gets to do something else, in seconds.
_SOON = 0.005
#: Where undecodable messages go when no worker of ours says otherwise.
_DEAD_LETTERS = "dead_letter"


class Channel(FetchingChannel):
    """kombu's, but for how messages get from the broker to their consumers."""

    QoS = QoS
    Message = Message

    #: Called with what is no message, instead of ``bury``.
    on_undecodable: Callable[[Prefetched], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._one_client: tuple[int, Any, Any] | None = None
        #: To deliver took its time: the loop has to come round first.
        self._slow = False
        super().__init__(*args, **kwargs)

    # Deliver

    @property
    def undelivered(self) -> int:
        """How many messages were taken and not delivered yet."""
        return len(self._prefetched)

    def deliver(self, most: int) -> int:
        """Deliver up to *most* of the messages that were taken; how many there were.

        None after one that took its time, until the loop has come round.
        """
        done, since = 0, monotonic()
        while done < most and self._prefetched and not self._slow:
            self._deliver(self._prefetched.popleft())
            done += 1
            self._slow = monotonic() - since > _SOON
        return done

    def come_round(self) -> None:
        """Called when the loop begins again, and the worker has acknowledged what it had to.

        In a pool that runs its tasks here and now, one that has ended waits for no other.
        """
        if self._slow and self._acks:
            self.all_answered()  # the next message may be in the answer
            self.fetch()
        self._slow = False

    def _deliver(self, taken: Prefetched) -> None:
        connection = self.connection
        popped: dict[str, int] = getattr(self.qos, "popped", {})
        if taken.queue not in connection._callbacks:  # cancelled meanwhile
            self.qos.requeue(taken)
            return
        try:
            message = taken.decoded()
            if taken.held:
                popped[taken.tag] = taken.number
            connection._deliver(message, taken.queue)
        except Undecodable as exc:
            popped.pop(taken.tag, None)
            logger.error(
                "%s: an entry is not a message (%s): it becomes a dead letter", taken.queue, exc
            )
            if self.on_undecodable is not None and taken.held:
                self.on_undecodable(taken)
            else:
                self.dead_letter(taken)
        except BaseException:
            if taken.tag in popped:  # its consumer never saw it
                popped.pop(taken.tag, None)
                self._prefetched.appendleft(taken)
            raise

    def dead_letter(self, taken: Prefetched) -> None:
        """Move what is no message, as it was received, to the dead letters."""
        envelope = Envelope(taken.payload, None, None, headers={}, queue=taken.queue)
        letter = DeadLetter.write(Reason.UNDECODABLE, envelope).to_envelope()
        payload = dumps(letter.to_wire(str(uuid.uuid4()), _DEAD_LETTERS))
        prefix = self.global_keyprefix
        keys = [*self._held_in(), prefix + _DEAD_LETTERS, f"{prefix}{KEYS}takes"]
        keys.append(f"{prefix}{KEYS}written:{taken.tag}")
        self.all_answered()
        owner = "" if self.lease_owner is None else self.lease_owner.id
        args = [taken.tag, payload, "0" if taken.held else "1", owner, taken.number or ""]
        self.fetcher.ask(lua("move_unacked"), keys, args)
        self.fetcher.answer()

    # Acks

    def ack_soon(self, tag: str) -> bool:
        """Ack *tag* with the next question; False if there is none that follows at once."""
        cycle = self.connection and self.connection.cycle
        if (
            not self.consuming
            or self._closing
            or cycle.thread != get_ident()
            or (cycle.loop is None and self.lease_owner is None)
        ):
            return False
        self._acks.append(tag)
        return True

    @property
    def acknowledged(self) -> int:
        """How many are to be acked with the next question."""
        return len(self._acks)

    def ack_now(self) -> None:
        """Ack what is finished, and wait until that is done."""
        self.all_answered()
        while self._acks:
            self._ask(0)
            if not self.answered():
                break

    # Consumers come and go

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        no_ack = args[0] if args else kwargs.get("no_ack")
        (self._unheld.add if no_ack else self._unheld.discard)(queue)
        return super().basic_consume(queue, *args, **kwargs)

    def _update_queue_cycle(self) -> None:
        super()._update_queue_cycle()
        self.consuming = bool(self.active_queues)
        self.fetch_soon()

    def _basic_cancel(self, consumer_tag: str) -> Any:
        done = super()._basic_cancel(consumer_tag)
        try:
            self._leave_to_others()
        except (AttributeError, OSError, *self.connection_errors) as exc:
            self._cut = exc  # who consumes next hears of it: this one is not half cancelled
        return done

    def _leave_to_others(self) -> None:
        """Requeue what is not consumed here any more."""
        self.all_answered()
        active = set(self.active_queues) if self._prefetched else ()
        back = [taken for taken in self._prefetched if taken.queue not in active]
        self._prefetched = deque(taken for taken in self._prefetched if taken.queue in active)
        for taken in reversed(back):  # the oldest ends where the next is taken from
            self.qos.requeue(taken)
        if not self.consuming:
            self.ack_now()

    def close(self) -> None:
        if not self.closed:
            self._closing = True
            try:
                self.ack_now()
                while self._prefetched:
                    self.qos.requeue(self._prefetched.pop())
            except (AttributeError, OSError, *self.connection_errors) as exc:
                left = len(self._prefetched) + len(self._acks)
                logger.warning("lost the connection with %d messages: %r", left, exc)
            if self.lease_owner is not None:  # what the server has not acknowledged, too
                self.lease_owner.unsent.extend(self._acks)
            self._prefetched.clear()
            self._acks.clear()
            self.fetcher.disconnect()
        super().close()

    # Connections

    def _connparams(self, asynchronous: bool = False) -> Any:
        params = super()._connparams(asynchronous=asynchronous)
        if asynchronous and params.get("socket_timeout") is None:
            params["socket_timeout"] = ANSWER
        return params

    def _create_client(self, asynchronous: bool = False) -> Any:
        # kombu makes a new one for every command, which costs as much as the command itself.
        if asynchronous:  # those read on their own
            return super()._create_client(asynchronous=True)
        process, pool, client = self._one_client or (0, None, None)
        if process != os.getpid() or pool is not self.pool:
            client = super()._create_client()
            self._one_client = os.getpid(), self.pool, client
        return client

    def _on_connection_disconnect(self, connection: Any) -> None:
        # kombu's way is to stop its loop; ours is looked after by the fetcher.
        client = self.__dict__.get("client")
        if client is None or client.connection is not connection:
            super()._on_connection_disconnect(connection)
        elif self.consuming and not self._closing:
            if self.fetcher.asking and not self.fetcher.in_use:  # no answer will come
                self._cut = ConnectionError("the connection that fetches messages was closed")
            self.fetch_soon()
            self.connection.cycle.nudge()

    def _after_fork(self) -> None:
        self.fetcher.notifications.close()  # the child's copy alone
        super()._after_fork()
