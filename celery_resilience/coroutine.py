"""``async def`` bodies: stock Celery returns their coroutine and nobody awaits it.

Here each one is run to its end in an event loop of its own, where the body of any other task
would run: in a pool child, a thread, or the worker itself. Ordinary bodies are not touched.
"""

from __future__ import annotations

import functools
import inspect
import signal
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from celery_resilience.task import ResilientTask

__all__ = ["refuse_async_bodies", "run_async_body"]


def run_async_body(cls: type[ResilientTask]) -> None:
    """If the body of the task *cls* is an ``async def``, run it to its end wherever Celery calls
    it; a direct call still returns the coroutine, as the bare function does."""
    stated = inspect.getattr_static(cls, "run")
    if not _is_async(stated) or getattr(stated, "runs_to_its_end", False):
        return
    is_static = isinstance(stated, staticmethod)
    body: Any = stated.__func__ if is_static else stated

    @functools.wraps(body)
    def run(self: ResilientTask, *args: Any, **kwargs: Any) -> Any:
        result = body(*args, **kwargs) if is_static else body(self, *args, **kwargs)
        request: Any = self.request_stack.top
        if request is None or request.called_directly or not inspect.iscoroutine(result):
            return result
        return _completed(result, str(self.name))

    run.__dict__["runs_to_its_end"] = True
    cls.run = run  # type: ignore[assignment,method-assign]


def refuse_async_bodies(app: Any, pool: Any) -> None:
    """Refuse to start a worker whose greenlets would share one thread's event loop."""
    if not getattr(pool, "is_green", False):
        return
    names = sorted(
        name
        for name, task in app.tasks.items()
        if getattr(inspect.getattr_static(task, "run", None), "runs_to_its_end", False)
    )
    if names:
        raise ImproperlyConfigured(
            f"{', '.join(names)}: an async def body cannot run in a gevent or eventlet pool, whose "
            "greenlets share one thread and so one event loop. Start the worker with --pool "
            "prefork, threads or solo; or write the body with def, which gevent makes concurrent."
        )


def _is_async(body: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(body, "__func__", body)))


def _completed(coroutine: Coroutine[Any, Any, Any], name: str) -> Any:
    import asyncio  # here: programs without async bodies do not pay for it

    if asyncio._get_running_loop() is not None:
        coroutine.close()
        raise RuntimeError(
            f"{name}: an async def body cannot be run eagerly from inside a running event loop: "
            f"await {name.rpartition('.')[2]}(...) instead, or send it to a worker"
        )
    return asyncio.run(_limited(coroutine))


async def _limited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await *coroutine*; the soft time limit is raised in its code, or cancels it where it waits.

    Billiard's own handler raises wherever the signal finds the process: in the event loop's own
    code the exception would end in the loop's log, and the body would go on.
    """
    import asyncio

    from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(SIG_SOFT_TIMEOUT) is not soft_timeout_sighandler
    ):
        return await coroutine  # no limit is set for it: only prefork has soft ones
    loop, body = asyncio.get_running_loop(), asyncio.current_task()
    assert body is not None
    is_over = False

    def end(signum: int, frame: Any) -> None:
        nonlocal is_over
        is_over = True
        if asyncio.current_task(loop) is body:
            raise SoftTimeLimitExceeded
        loop.call_soon_threadsafe(body.cancel)

    signal.signal(SIG_SOFT_TIMEOUT, end)
    try:
        return await coroutine
    except asyncio.CancelledError as exc:
        if is_over:
            raise SoftTimeLimitExceeded from exc
        raise
    finally:
        signal.signal(SIG_SOFT_TIMEOUT, soft_timeout_sighandler)
