"""``async def`` bodies: stock Celery returns their coroutine and never awaits it.

Here each one is run to its end in an event loop of its own, where the body of any other task
would run: in a pool child, a thread, or the worker itself. Ordinary bodies are not touched.
"""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from celery_resilience.task.options import TaskWithOptions

__all__ = ["completed", "is_async", "refuse_async_bodies"]


def is_async(body: Any) -> bool:
    """Whether *body* is an ``async def``, whatever decorates it."""
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(body, "__func__", body)))


def completed(task: TaskWithOptions, result: Any, nested: bool = False) -> Any:
    """What an ``async def`` body that has returned *result*, its coroutine, comes to.

    A direct call still returns the coroutine, as the bare function does; so does one that is
    *nested* in the event loop of another body.
    """
    request: Any = task.request_stack.top
    if request is None or request.called_directly or not inspect.iscoroutine(result):
        return result
    import asyncio  # here: programs without async bodies do not pay for it

    if asyncio._get_running_loop() is None:
        return asyncio.run(_limited(result))
    if nested:
        return result
    result.close()
    name = str(task.name)
    raise RuntimeError(
        f"{name}: an async def body cannot be run eagerly from inside a running event loop: "
        f"await {name.rpartition('.')[2]}(...) instead, or send it to a worker"
    )


def refuse_async_bodies(app: Any, pool: Any) -> None:
    """Refuse to start a worker whose greenlets would share one thread's event loop."""
    if not getattr(pool, "is_green", False):
        return
    names = sorted(
        name
        for name, task in app.tasks.items()
        if getattr(inspect.getattr_static(task, "run", None), "is_async", False)
    )
    if names:
        raise ImproperlyConfigured(
            f"{', '.join(names)}: an async def body cannot run in a gevent or eventlet pool, whose "
            "greenlets share one thread and so one event loop. Start the worker with --pool "
            "prefork, threads or solo; or write the body with def, which gevent makes concurrent."
        )


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
