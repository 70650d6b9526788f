"""The body of a task, wrapped once: what an attempt deserves is decided in here.

What else wraps ``run`` or ``__call__`` (error trackers, tracers, a ``__call__`` of the user's)
is outside, and finds decided what to think of it: Celery's ``Retry`` is raised for an attempt
that goes on, and the original exception for the last one. Only the outermost call of an attempt
decides; one within it, such as ``super().run()`` or another task called as a function, behaves as
the bare body does, and so does a direct call.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from celery.app.task import Task

from celery_resilience.classify.foreign import is_the_workers, let_through
from celery_resilience.errors import unreadable
from celery_resilience.task.async_body import completed, is_async
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.context_store import open_store
from celery_resilience.task.reraise import end_attempt, exited
from celery_resilience.task.result_check import fallback, refuse_result

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions

__all__ = ["wrap_body"]


def wrap_body(cls: type[TaskWithOptions]) -> None:
    """Let ``run`` of the task *cls* decide about its failures; ``__wrapped__`` is what it was."""
    stated = inspect.getattr_static(cls, "run")
    if hasattr(stated, "decides") or stated is Task.run:
        return
    # Python 3.13's partial has a __get__, which binds nothing yet.
    unbound = (staticmethod, classmethod, functools.partial)
    is_method = not isinstance(stated, unbound) and hasattr(stated, "__get__")
    body: Any = stated
    if not is_method:
        body = stated.__get__(None, cls) if hasattr(stated, "__get__") else stated
    awaits = is_async(body)

    @functools.wraps(body)
    def run(self: TaskWithOptions, *args: Any, **kwargs: Any) -> Any:
        attempt = current_attempt.get()
        given = (self, *args) if is_method else args
        if attempt is None or attempt.inside or attempt.task is not self:
            result = body(*given, **kwargs)
            return completed(self, result, attempt is not None) if awaits else result
        attempt.inside, attempt.decided, store = True, None, None
        try:
            if self.context_key is not None:
                store = open_store(attempt, args, kwargs)
            result = body(*given, **kwargs)
            if awaits:
                result = completed(self, result)
            if self.retry_on_result is not None:
                refuse_result(self, result)
        except BaseException as exc:
            raised = _decide(self, attempt, exc)
            found = fallback(attempt, raised)
            if found is None:
                if store is not None:
                    store.save(attempt)
                if raised is exc:
                    raise
                raise raised from raised.__cause__
            (result,) = found
        finally:
            attempt.inside = False
        if store is not None:
            store.delete()
        return result

    run.__dict__.update(decides=True, is_async=awaits)
    if not is_method:
        _show_signature(run, body)
    cls.run = run  # type: ignore[assignment,method-assign]


def _decide(task: TaskWithOptions, attempt: CurrentAttempt, exc: BaseException) -> BaseException:
    """What is raised for *exc*, in which the body has ended."""
    request: Any = task.request
    if request.called_directly:
        return exc
    if not isinstance(exc, Exception):
        if request.is_eager or is_the_workers(exc, request.timelimit, task.time_limit):
            return exc
        exc = exited(exc)
    try:
        return end_attempt(task, request, exc, attempt)
    except BaseException as problem:  # its own class lies, or its attributes do worse
        let_through(problem)
        return end_attempt(task, request, unreadable(exc, problem), attempt)


def _show_signature(run: Any, body: Any) -> None:
    """Let ``task.run`` show the arguments of a *body* that takes no ``self``."""
    try:
        signature = inspect.signature(body)
    except (TypeError, ValueError):  # a builtin, perhaps
        return
    this = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
    parameters = signature.parameters.values()
    run.__signature__ = signature.replace(parameters=[this, *parameters])
