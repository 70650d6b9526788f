"""What the pool's processes have in hand, and Celery would forget."""

from __future__ import annotations

import logging
import select
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from time import monotonic
from types import GeneratorType
from typing import Any

from celery.worker import state

__all__ = ["keep_partial_results", "keep_what_runs", "keeping_sent"]

logger = logging.getLogger("celery_resilience")

#: Celery's reader of one result, as far as it has come.
Reading = Generator[None, None, None]

#: How long a child may take to send the rest of a result when the worker ends, in seconds.
_REST = 10.0


def keep_what_runs(pool: Any) -> None:
    """Celery 5.5 forgets at a reconnect what the children of *pool* run, and never hears how that
    ends: on Redis the message would then lie there for an hour."""
    flush = getattr(pool, "flush", None)
    jobs = getattr(getattr(pool, "_pool", None), "_cache", None)
    if flush is None or jobs is None or hasattr(flush, "keeps_what_runs"):
        return

    def keeping() -> None:
        running = {number: job for number, job in jobs.items() if job._accepted}
        flush()
        jobs.update(running)

    keeping.__dict__["keeps_what_runs"] = True
    pool.flush = keeping


@contextmanager
def keeping_sent(pool: Any) -> Iterator[None]:
    """Celery forgets, when the worker goes down, what no child has accepted. A child may have got
    it all the same, and its word still be on its way: it runs it, and if it were not heard how that
    ends, the broker would deliver it again."""
    jobs = getattr(getattr(pool, "_pool", None), "_cache", None)
    before = dict(jobs or {})
    yield
    if jobs is not None and not state.should_terminate:
        jobs.update({number: job for number, job in before.items() if _is_with_a_child(job)})


def _is_with_a_child(job: Any) -> bool:
    process = getattr(job, "_write_to", None)
    return process is not None and process._is_alive() and not job.ready()


def keep_partial_results(hub: Any, pool: Any) -> None:
    """Celery forgets, when it resets its loop, which results its children have sent in part: it
    would take the rest for the beginning of another one, and the worker would end of it, or wait
    for ever for what never comes."""
    is_prefork = hasattr(getattr(pool, "_pool", None), "_fileno_to_outq")
    if not is_prefork or hasattr(pool.stop, "keeps_results"):
        return
    reset, register, stop = hub.reset, pool.register_with_event_loop, pool.stop
    #: By file descriptor the child, for another one may be given the same, and what reads it.
    partial: dict[int, tuple[Any, Reading]] = {}

    def resetting() -> None:
        for fd, child in (getattr(pool._pool, "_fileno_to_outq", None) or {}).items():
            read = (hub.readers.get(fd) or (None,))[0]
            if isinstance(read, GeneratorType):
                partial[fd] = child, read
        reset()

    def left() -> dict[int, Reading]:
        children = pool._pool._fileno_to_outq
        found = {fd: read for fd, (child, read) in partial.items() if children.get(fd) is child}
        partial.clear()
        return found

    def registering(loop: Any) -> None:
        register(loop)
        for fd, read in left().items():
            loop.add_reader(fd, read)

    def stopping() -> None:  # until Celery 5.7 its loop is reset then, too
        if partial:
            _finish(left())
        stop()

    stopping.__dict__["keeps_results"] = True
    hub.reset, pool.register_with_event_loop, pool.stop = resetting, registering, stopping


def _finish(partial: dict[int, Reading]) -> None:
    """Read the rest of the results that are there in part, and take them out of *partial*."""
    until = monotonic() + _REST
    poll = select.poll()
    for fd in partial:
        poll.register(fd, select.POLLIN)
    while partial and (left := until - monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            try:
                next(partial[fd])
                continue
            except StopIteration:
                pass
            except Exception as exc:  # as an end of the file: the child has died
                logger.warning("a result that a process of the pool has sent in part: %r", exc)
            poll.unregister(fd)
            del partial[fd]
