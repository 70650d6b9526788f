"""Going over dead letters: all of them, those with an id, or each once while it is changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from celery_resilience.brokers.base import Broker, Browsed
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.filters import Filters
from celery_resilience.operate.filed import Filed, named
from celery_resilience.operate.ids import Names, resolve_ids

__all__ = ["LetterBrowser"]

#: How many letters are held in memory while they are replayed.
_BATCH = 100


@dataclass(frozen=True)
class LetterBrowser:
    """The letters that lie in *queues* of a broker."""

    broker: Broker
    queues: Sequence[str]
    #: The names of the positional parameters of a task, for the filters.
    parameters: Callable[[str], Sequence[str]]

    def every(self) -> Iterator[tuple[Browsed, Filed]]:
        """All letters, the oldest of each queue first."""
        names = Names()
        for queue in self.queues:
            for found in self.broker.browse(queue):
                yield found, named(DeadLetter.from_envelope(found.envelope), queue, names)

    def with_ids(self, ids: Sequence[str]) -> Sequence[tuple[Browsed, Filed]]:
        """The letters that *ids* mean, in their order; nothing is kept of the others."""
        return resolve_ids(
            ids,
            self.every(),
            lambda one: one[1].name,
            what="dead letter",
            where=", ".join(self.queues),
            unique=True,
            task_of=lambda one: one[1].letter.task_id,
            at=lambda one: one[1].letter.at,
        )

    def accept(self, filters: Filters, letter: DeadLetter) -> bool:
        """Whether *filters* accept the *letter*."""
        return not filters or filters.accept(
            letter.envelope,
            error=letter.error.error,
            message=letter.error.message,
            at=letter.at,
            reason=letter.reason,
            groups=lambda: (letter.group, letter.fingerprint),
            parameters=self.parameters,
        )

    def each_once(self, filters: Filters, kept: set[int]) -> Iterator[tuple[Browsed, Filed]]:
        """As many letters of each queue as lie there now, each once, though they are removed
        while this goes on; *kept* has the hash of each one's key that is not."""
        for queue in self.queues:
            left = self.broker.count(queue)
            again = True
            # A letter that another process removes meanwhile may move others past the place where
            # the broker goes on reading: so once more, until nothing new is found.
            while again and left > 0:
                again = False
                names, browsed = Names(), self.broker.browse(queue)
                while left > 0 and (batch := list(itertools.islice(browsed, _BATCH))):
                    for found in batch:
                        if left < 1 or hash(found.key) in kept:
                            continue
                        filed = named(DeadLetter.from_envelope(found.envelope), queue, names)
                        left -= 1
                        if not self.accept(filters, filed.letter):
                            kept.add(hash(found.key))
                            continue
                        again = True
                        yield found, filed
