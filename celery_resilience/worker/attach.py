"""How a worker's consumer, our step in it, and the requests of our tasks find each other.

Celery asks an app for its steps when a worker is made. A task of ours that comes later, as in a
test's embedded worker that reloads, would be acknowledged and not settled: a worker that was made
before our step was known gets it while it runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.utils.imports import symbol_by_name
from celery.worker import consumer as _consumer

__all__ = ["attach", "joined", "making_requests_for"]

# The stubs do not know what a consumer has.
Consumer: Any = _consumer.Consumer
Tasks: Any = _consumer.Tasks

logger = logging.getLogger("celery_resilience")

_STEP = "celery_resilience"
_lock = threading.Lock()


def attach(c: Any) -> None:
    """See to it that the consumer *c* has our step; raises what the step refuses."""
    if not isinstance(c, Consumer) or _STEP in c.blueprint.steps:
        return
    from celery_resilience.worker.bootstep import ResilienceStep

    options = getattr(c.controller, "options", None) or {}
    step = c.blueprint.steps[_STEP] = ResilienceStep(c, **options)
    runs = c.blueprint.started == len(c.steps)
    # The step behind it is the loop, which does not return.
    after = next(n for n, other in enumerate(c.steps, 1) if isinstance(other, Tasks))
    c.steps.insert(after, step)
    if runs:
        c.blueprint.started += 1
        c.call_soon(step.start_late, c)  # connections are the loop's
    # Else it is just about to start its steps one by one, and starts this one too.
    logger.warning(
        "celery_resilience was loaded after this worker was created: from now on it settles "
        "failures. Call install(app), and define tasks with base=ResilientTask, before that"
    )


@contextmanager
def joined(c: Any, task: Any) -> Iterator[None]:
    """Within it, *task* may start its strategy in the consumer *c*: that has our step, and
    settles the task's requests."""
    attach(c)
    with making_requests_for(c, task):
        yield


@contextmanager
def making_requests_for(c: Any, task: Any) -> Iterator[None]:
    """Within it, a strategy that asks *task* for its Request gets one that the consumer *c*
    settles: several workers of an app may run in one process."""
    ours = _with_ours(task.Request)
    steps = getattr(getattr(c, "blueprint", None), "steps", {})
    step = steps.get(_STEP) if isinstance(steps, dict) else None
    with _lock:
        task.Request = ours if step is None else step.settler.request_class(ours)
        try:
            yield
        finally:
            task.Request = ours


def _with_ours(request: Any) -> Any:
    from celery_resilience.worker.request import ResilientRequest

    theirs = symbol_by_name(request)
    if issubclass(theirs, ResilientRequest):
        return theirs
    if issubclass(ResilientRequest, theirs):
        return ResilientRequest
    return type(theirs.__name__, (theirs, ResilientRequest), {"__module__": theirs.__module__})
