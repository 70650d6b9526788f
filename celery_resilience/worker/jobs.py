"""What the pool's processes have in hand, and Celery would forget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.worker import state

__all__ = ["keep_what_runs", "keeping_sent"]


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
