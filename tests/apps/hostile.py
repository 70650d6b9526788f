"""Exceptions that hurt whoever looks at them, and a result store that refuses.

``REFUSES`` is a task whose failure can't be stored where its body runs.
"""

from __future__ import annotations

import os
from typing import Any

from celery.backends.redis import RedisBackend

os.environ["BACKEND_URL"] = (
    f"{__name__}:Refusing+{os.environ['BACKEND_URL'].removeprefix('redis+')}"
)

from celery_resilience import Policy, on
from tests.apps.shop import app, record

MAIN = os.getpid()


class Refusing(RedisBackend):
    """Has no file descriptors left in a pool's process."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        is_child = os.getpid() != MAIN
        if state == "FAILURE" and is_child and kwargs["request"].task == "hostile.unheard":
            raise OSError(24, "Too many open files")
        return super().store_result(task_id, result, state, *args, **kwargs)


class Interrupt(BaseException):
    """No Exception."""


def leave(*args: Any) -> Any:
    raise SystemExit("look elsewhere")


def interrupt(*args: Any) -> Any:
    raise Interrupt("look elsewhere")


#: What an exception may say of itself, by the name of the attribute that does it.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "getattribute": {"__getattribute__": leave},
    "getattr": {"__getattr__": leave},
    "class": {"__class__": property(leave)},
    "traceback": {"__traceback__": property(leave)},
    "cause": {"__cause__": property(interrupt)},
    "dict": {"__dict__": property(leave)},
    "args": {"args": property(interrupt)},
    "str": {"__str__": leave},
    "repr": {"__repr__": leave, "__str__": interrupt},
    "reduce": {"__reduce_ex__": leave},
    "status": {"status_code": property(leave), "response": property(interrupt)},
    "retry_after": {"retry_after": property(leave), "retryable": property(leave)},
    "notes": {"__notes__": property(leave)},
    "exc": {"exc": property(leave)},
}
KINDS = {name: type(f"Hostile{name}", (ValueError,), said) for name, said in ATTRIBUTES.items()}


@app.task(name="hostile.raises")
def raises(name: str) -> None:
    record(name)
    raise KINDS[name]("do not look")


ONCE = Policy(on(ValueError).retry(max_retries=1, delay=0))


@app.task(name="hostile.retried", failure_policy=ONCE)
def retried(name: str) -> None:
    record(f"retried_{name}")
    raise KINDS[name]("do not look")


def exits(*args: Any) -> Any:
    raise SystemExit("a function of the user's")


LEAVES = Policy(
    on(KeyError, when=exits).discard(), on(KeyError).retry(max_retries=1, delay=exits), backoff=0
)


@app.task(name="hostile.policy", failure_policy=LEAVES)
def bad_policy(name: str) -> None:
    record(name)
    raise KeyError(name)


class ExitingHooks(app.Task):  # type: ignore[name-defined,misc]
    abstract = True
    on_failure = on_retry = exits


@app.task(name="hostile.hooks", base=ExitingHooks, failure_policy=ONCE)
def bad_hooks(name: str) -> None:
    record(name)
    raise ValueError(name)


@app.task(name="hostile.unheard")
def unheard(name: str) -> None:
    record(name)
    raise ValueError(name)


@app.task(name="hostile.unwritable")
def unwritable(name: str) -> Any:
    record(name)
    return {name}
