"""Scheduled retries, inspected and changed: ``celery retries`` from Python.

::

    with Retries(app) as retries:
        for waiting in retries.list(limit=20):
            print(waiting.task, waiting.left)
        for changed in retries.run("all", filters=Filters(error="Timeout")):
            print(changed.result, changed.why)
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, Union, cast

from kombu.serialization import prepare_accept_content

from celery_resilience.brokers.base import CountsDelayed
from celery_resilience.brokers.redis.scheduled import ScheduledMessage
from celery_resilience.errors import BrokerError
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.filters import Filters
from celery_resilience.operate.app_info import known_queues, load_tasks
from celery_resilience.operate.ids import resolve_ids
from celery_resilience.operate.mark_failed import FailureNotifier
from celery_resilience.operate.scheduled_retry import Changed, Result, ScheduledRetry, why_unlisted
from celery_resilience.operate.session import OperatorSession

if TYPE_CHECKING:
    from celery_resilience.brokers.redis.broker import RedisBroker

__all__ = ["Changed", "NotListed", "Result", "Retries", "ScheduledRetry"]

logger = logging.getLogger("celery_resilience")

_EVERY = Filters()


class NotListed(BrokerError):
    """This broker cannot list scheduled retries."""

    __module__ = "celery_resilience.retries"  # stored errors name it


#: A task's id, ids, or ``"all"``.
Meant = Union[str, Iterable[str]]  # noqa: UP007
#: What is done to one scheduled retry.
_Change = Callable[["RedisBroker", ScheduledMessage, ScheduledRetry], Changed]


class Retries(OperatorSession):
    """The scheduled retries of every queue in the broker of a Celery *app*.

    Listing changes nothing. Every change is one step in the broker: two operators, or an operator
    and the workers, never move the same retry twice. Each method that changes something takes an
    id, ids, or ``"all"``, which means those that *filters* accept and that were scheduled when it
    began; nothing happens before the first result is asked for.

    On brokers that cannot list them, each raises NotListed; where the broker does not
    answer for *timeout* seconds, NoAnswer. A result store is not waited for longer either.
    """

    # Reading

    def count(self) -> dict[str, int]:
        """How many retries are scheduled for each queue, 0 included."""
        load_tasks(self._app)
        with self._turn() as broker:
            counts = {**dict.fromkeys(known_queues(self._app), 0), **broker.waiting.counts()}
            return dict(sorted(counts.items()))

    @property
    def unlisted(self) -> str | None:
        """Why this broker cannot list scheduled retries; None where it can."""
        with self._session.use() as broker:
            return why_unlisted(broker)

    def levels(self) -> list[tuple[float, int]]:
        """Where RabbitMQ keeps them: how long its levels hold a message, how many are in each.

        A retry passes through several; none of them knows its queue. Empty on other brokers.
        """
        with self._session.use() as broker:
            return broker.waiting_levels() if isinstance(broker, CountsDelayed) else []

    def list(self, limit: int | None = None, filters: Filters = _EVERY) -> Iterator[ScheduledRetry]:
        """The first *limit* that *filters* accept; in each queue those that are due first."""
        with self._turn() as broker:
            looked = (retry for _, retry in self._look(broker, filters))
            yield from itertools.islice(looked, limit)

    def find_all(self, ids: Iterable[str]) -> Sequence[ScheduledRetry]:
        """Those with these task ids, or the only one whose id begins so;
        raises NoSuchId if one is not there."""
        with self._turn() as broker:
            return [retry for _, retry in self._find(broker, list(ids))]

    # Changing

    def run(
        self, retries: Meant, *, filters: Filters = _EVERY, limit: int | None = None
    ) -> Iterator[Changed]:
        """Put *retries* into their queues now."""

        def change(broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry) -> Changed:
            return _put(broker, found, retry, Result.RUN, found.envelope, retry.queue)

        return self._change(retries, filters, limit, change)

    def bury(
        self, retries: Meant, *, filters: Filters = _EVERY, limit: int | None = None
    ) -> Iterator[Changed]:
        """Make dead letters of *retries*, reason ``manual``, with all their attempts; Celery is
        told that they have failed."""
        load_tasks(self._app)
        notifier = FailureNotifier(self._app, self._timeout)

        def change(broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry) -> Changed:
            task = self._app.tasks.get(retry.task)
            own = getattr(task, "dead_letter_queue", None)
            queue = self.settings.queue_for(retry.queue, own)
            letter = retry.letter.to_envelope()
            broker.remember_letters(queue)
            changed = _put(broker, found, retry, Result.BURIED, letter, queue)
            if changed.result is Result.BURIED:
                notifier.announce(retry.letter)
            return changed

        return self._change(retries, filters, limit, change)

    def drop(
        self,
        retries: Meant,
        *,
        filters: Filters = _EVERY,
        limit: int | None = None,
        because: str = "",
    ) -> Iterator[Changed]:
        """Remove *retries* for good: they are neither run nor kept. Celery is told that the task
        was revoked, *because* is the reason."""
        load_tasks(self._app)
        notifier = FailureNotifier(self._app, self._timeout)

        def change(broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry) -> Changed:
            if not broker.waiting.remove(found):
                return Changed.gone(retry)
            logger.info(
                "dropped the scheduled retry of %s[%s]%s", retry.task, retry.task_id,
                because and f": {because}",
            )  # fmt: skip
            notifier.announce_drop(retry.letter, because)
            return Changed(retry, Result.DROPPED)

        return self._change(retries, filters, limit, change)

    def reschedule(
        self,
        retries: Meant,
        *,
        delay: float = 0.0,
        spread: float = 0.0,
        filters: Filters = _EVERY,
        limit: int | None = None,
        random: Random | None = None,
    ) -> Iterator[Changed]:
        """Make *retries* due in *delay* seconds from now, and up to *spread* more: evenly
        distributed over that time, so that they do not come back together."""
        if delay < 0 or spread < 0:
            raise ValueError(f"delay and spread must be >= 0, got {delay:g} and {spread:g}")
        chance = random or Random()
        began: list[float] = []

        def change(broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry) -> Changed:
            if not began:
                began.append(broker.waiting.now())
            due = began[0] + delay + chance.uniform(0.0, spread)
            if not broker.waiting.delay(found, due):
                return Changed.gone(retry)
            return Changed(retry, Result.RESCHEDULED, due=due)

        return self._change(retries, filters, limit, change)

    def release(
        self, retries: Meant, *, filters: Filters = _EVERY, limit: int | None = None
    ) -> Iterator[Changed]:
        """Return *retries* to plain Celery: into their queues, each with the moment at which
        it is due as its ``eta``, so that a stock worker holds it until then."""
        accepted = prepare_accept_content(self._app.conf.accept_content) or ()

        def change(broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry) -> Changed:
            try:
                envelope = retry.released(found, accepted)
            except ValueError as exc:
                return Changed(retry, Result.FAILED, why=str(exc))
            return _put(broker, found, retry, Result.RELEASED, envelope, retry.queue)

        return self._change(retries, filters, limit, change)

    def workers(self) -> int:
        """How many workers of ours are alive: each moves the due retries of every queue."""
        with self._turn() as broker:
            return sum(left > 0 for left in broker.leases.workers().values())

    def orphans(self, over: float = 0.0) -> dict[str, int]:
        """How many messages lie with each worker of ours whose lease is *over* for so long."""
        with self._turn() as broker:
            return broker.leases.orphans(over)

    def reclaim(self) -> int:
        """Requeue what dead workers of ours hold, as any living one does by itself; how many
        messages there were."""
        with self._turn() as broker:
            given = 0
            for worker in broker.leases.orphans():
                given += broker.leases.requeue(worker)
                broker.leases.forget(worker, if_dead=True)
            return given

    def give_back(self) -> int:
        """What :meth:`reclaim` was called in 0.1.0."""
        warnings.warn("Retries.give_back is called reclaim", DeprecationWarning, stacklevel=2)
        return self.reclaim()

    # One after the other

    def _look(
        self, broker: RedisBroker, filters: Filters
    ) -> Iterator[tuple[ScheduledMessage, ScheduledRetry]]:
        now = broker.waiting.now()
        for found in broker.waiting.browse(filters.queues):
            retry = ScheduledRetry.of(found, now, self.settings.app_version)
            if not filters or filters.accept(
                found.envelope,
                error=retry.letter.error.error,
                message=retry.letter.error.message,
                at=retry.failed_at,
                groups=retry.groups,
                parameters=self._parameters,
            ):
                yield found, retry

    def _find(
        self, broker: RedisBroker, ids: Sequence[str]
    ) -> Sequence[tuple[ScheduledMessage, ScheduledRetry]]:
        found, what = self._look(broker, _EVERY), "scheduled retry"
        return resolve_ids(ids, found, lambda one: one[1].task_id, what=what, where="this broker")

    def _change(
        self, retries: Meant, filters: Filters, limit: int | None, change: _Change
    ) -> Iterator[Changed]:
        with self._turn() as broker:
            #: Those that were put off: the listing may come to them again. Only numbers, for
            #: of the retries themselves there may be more than memory holds.
            put_off: set[int] = set()
            chosen: Iterable[tuple[ScheduledMessage, ScheduledRetry]]
            if retries == "all":
                chosen = self._all(broker, filters, put_off)
            else:
                ids = [retries] if isinstance(retries, str) else list(dict.fromkeys(retries))
                chosen = self._find(broker, ids)
            for found, retry in itertools.islice(chosen, limit):
                changed = change(broker, found, retry)
                if changed.due is not None and changed.due >= found.due:
                    put_off.add(hash(found.key))
                yield changed

    def _all(
        self, broker: RedisBroker, filters: Filters, put_off: set[int]
    ) -> Iterator[tuple[ScheduledMessage, ScheduledRetry]]:
        """Those scheduled now. One that fails again meanwhile is left."""
        began = broker.waiting.now()
        most = sum(broker.waiting.counts().values())  # should clocks be wrong, it ends all the same
        look = (
            (found, retry)
            for found, retry in self._look(broker, filters)
            if hash(found.key) not in put_off and not retry.is_younger_than(began)
        )
        return itertools.islice(look, most)

    @contextmanager
    def _turn(self) -> Iterator[RedisBroker]:
        with self._session.use() as broker:
            if (why := why_unlisted(broker)) is not None:
                raise NotListed(why)
            yield cast("RedisBroker", broker)


def _put(
    broker: RedisBroker, found: ScheduledMessage, retry: ScheduledRetry, result: Result,
    copy: Envelope, queue: str,
) -> Changed:  # fmt: skip
    put = broker.put(found, copy, queue)
    return Changed(retry, result, to=queue) if put else Changed.gone(retry)
