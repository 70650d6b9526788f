"""The bodies of ``cost_app.py`` as actors of Dramatiq: ``pip install 'dramatiq[redis]'``."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import CurrentMessage
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend


def redis_url(url: str) -> str:
    """A URL of kombu's as redis-py has it."""
    if not url.startswith("redis+socket://"):
        return url
    path, _, database = url.removeprefix("redis+socket://").partition("?virtual_host=")
    return f"unix://{path}?db={database or 0}"


broker = RedisBroker(url=redis_url(os.environ["BROKER_URL"]))
broker.add_middleware(CurrentMessage())
if "BACKEND_URL" in os.environ:
    backend = RedisBackend(url=redis_url(os.environ["BACKEND_URL"]))
    broker.add_middleware(Results(backend=backend, store_results=True))
dramatiq.set_broker(broker)

_done = os.open(os.environ.get("DONE", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dramatiq.actor
def success() -> None:
    os.write(_done, b".")


@dramatiq.actor(max_retries=3)
def retry() -> None:
    os.write(_done, b".")
    message = CurrentMessage.get_current_message()
    if message is None or not message.options.get("retries"):
        raise Retry("once", delay=0)


def load(side: str, path: str, tasks: int) -> None:
    """Send *tasks* of them."""
    actor = {"success": success, "retry": retry}[path]
    for _ in range(tasks):
        actor.send()
