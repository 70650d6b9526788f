"""Hooks that ask for another attempt, each in its own way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from celery.exceptions import Reject, Retry

from celery_resilience import Policy, ResilientTask, on
from tests.apps.shop import app, record


class Asking(ResilientTask):
    """Fails at the first attempt, or *times* times."""

    abstract = True
    failure_policy = Policy(max_retries=0)
    max_retries = 2
    default_retry_delay = 0

    def run(self, name: str, times: int = 1) -> str:
        attempt = self.request.retries + bool((self.request.delivery_info or {}).get("redelivered"))
        record(name)
        if attempt < times:
            raise KeyError(name)
        return "done"


def publishes(self: Any, *args: Any) -> None:
    if args[0] != "SUCCESS":
        self.retry(throw=False)


def raises(self: Any, *args: Any) -> None:
    if args[0] != "SUCCESS":
        raise self.retry()


def swallows(self: Any, *args: Any) -> None:
    with contextlib.suppress(Retry):
        self.retry()


def raises_its_own(self: Any, *args: Any) -> None:
    raise Retry(when=0)


def puts_back(self: Any, *args: Any) -> None:
    raise Reject("not yet", requeue=True)


def define(name: str, **hooks: Callable[..., Any]) -> None:
    more = {"name": f"hooks.{name}", "abstract": False}
    app.register_task(type(name, (Asking,), {**hooks, **more})())


for _hook in (publishes, raises, swallows, raises_its_own, puts_back):
    define(f"on_failure_{_hook.__name__}", on_failure=_hook)
define("after_return_publishes", after_return=publishes)
define("after_return_raises", after_return=raises)


class Retried(Asking):
    """Its policy retries it in ten minutes; its hook knows better."""

    abstract = True
    failure_policy = Policy(on(KeyError).retry(max_retries=2, delay=600))


for _hook in (publishes, raises):
    app.register_task(
        type(_hook.__name__, (Retried,), {
            "name": f"hooks.on_retry_{_hook.__name__}", "abstract": False, "on_retry": _hook,
        })()
    )  # fmt: skip
