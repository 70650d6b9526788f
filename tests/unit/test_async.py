"""``async def`` bodies, without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from celery.exceptions import ImproperlyConfigured

from celery_resilience import ResilientTask, TransientError, classify, install
from celery_resilience.task.async_body import refuse_async_bodies


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    return app


def test_applied_it_runs_to_its_end(app: Celery) -> None:
    @app.task(bind=True)
    async def fetch(self: Any, page: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return page, self.request.id

    assert fetch.apply((3,), task_id="an-id").get() == (3, "an-id")


def test_called_directly_it_is_the_bare_function(app: Celery) -> None:
    @app.task
    async def fetch(page: int) -> int:
        return page

    assert asyncio.run(fetch(3)) == 3
    assert asyncio.run(fetch.run(3)) == 3


def test_async_body_is_retried(app: Celery) -> None:
    @app.task(base=ResilientTask, bind=True)
    async def fetch(self: Any) -> int:
        await asyncio.sleep(0)
        if self.request.retries < 2:
            raise TransientError
        return int(self.request.retries)

    assert fetch.apply().get() == 2


def test_every_way_to_write_it(app: Celery) -> None:
    """By class, by a base's class, under a decorator; once, however often it is inherited."""

    class Fetch(Task):
        name = "shop.fetch"

        async def run(self, page: int) -> int:
            return page

    class FetchMore(Fetch):
        name = "shop.fetch_more"

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any) -> Any:
            return function(*args)

        return call

    @app.task
    @decorated
    async def wrapped(page: int) -> int:
        return page

    assert app.register_task(Fetch()).apply((1,)).get() == 1
    assert app.register_task(FetchMore()).apply((2,)).get() == 2
    assert wrapped.apply((3,)).get() == 3


def test_ordinary_body_may_return_a_coroutine(app: Celery) -> None:
    async def fetch() -> str:
        return "fetched"

    @app.task
    def starts() -> Any:
        return fetch()

    assert asyncio.run(starts.apply().get()) == "fetched"


def test_inside_of_a_running_loop_it_is_refused(app: Celery) -> None:
    @app.task
    async def fetch() -> None: ...

    async def view() -> Any:
        return fetch.apply()

    result = asyncio.run(view())
    with pytest.raises(RuntimeError, match=r"await fetch\(\.\.\.\) instead"):
        result.get()


def test_green_pool_is_refused_with_the_tasks_that_are_meant(app: Celery) -> None:
    @app.task(name="shop.fetch")
    async def fetch() -> None: ...

    @app.task(name="shop.plain")
    def plain() -> None: ...

    app.finalize()
    refuse_async_bodies(app, SimpleNamespace(is_green=False))
    with pytest.raises(ImproperlyConfigured, match=r"^shop\.fetch: an async def body"):
        refuse_async_bodies(app, SimpleNamespace(is_green=True))


def test_timeout_of_an_async_body_is_transient() -> None:
    async def late() -> None:
        await asyncio.wait_for(asyncio.sleep(5), 0)

    with pytest.raises(asyncio.TimeoutError) as caught:
        asyncio.run(late())
    assert classify(caught.value).kind == "transient"
