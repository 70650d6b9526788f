"""Every task defined three times, with the same body: on stock Celery, with our base, by install.

``stock.x`` is stock Celery's, acks_late as ours; ``resilient.x`` has ResilientTask as its base;
``installed.x`` is what ``install(app)`` makes of the stock definition. Whatever happens to them is
appended to the file RECORD, one JSON line an event: what the bodies get, the states that are
stored, and every hook, signal and callback that is called. Ids of tasks read ``side|row|n``.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, shared_task, signals
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.exceptions import (
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
)
from celery.worker.request import Request
from django.conf import settings
from kombu import Queue
from pydantic import BaseModel

from celery_resilience import ResilientTask, install

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
)
from celery.contrib.django.task import DjangoTask  # noqa: E402  it reads the settings

SIDES = ("stock", "resilient", "installed")


def record(id_: str | None, *event: Any) -> None:
    """One line for one event; appending a short line is atomic."""
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps([id_, *event], default=repr) + "\n")


class Recording(RedisBackend):
    """A result backend that tells which states it is asked to store."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        record(task_id, "stored", state, what(result))
        return super().store_result(task_id, result, state, *args, **kwargs)


app = Celery(
    "compat",
    broker=os.environ["BROKER_URL"],
    backend=f"{__name__}:Recording+{os.environ['BACKEND_URL'].removeprefix('redis+')}",
    set_as_current=True,
)
app.conf.update(
    task_default_queue="shop",
    task_default_queue_type=os.environ.get("QUEUE_TYPE", "classic"),
    task_queues=[
        Queue(name, queue_arguments={"x-queue-type": os.environ.get("QUEUE_TYPE", "classic")})
        for name in ("shop", "other")
    ],
    # Stock Celery holds the tasks that wait for a retry, and they must not stop the others.
    worker_prefetch_multiplier=50,
    broker_connection_retry_on_startup=True,
    accept_content=["json", "pickle"],
    task_annotations={
        f"{side}.annotated": {"max_retries": 1, "autoretry_for": (ValueError,)} for side in SIDES
    },
)
install(app, only=["installed.*"])


class Flop(ValueError):
    """What the bodies raise; the classifier would not retry it."""


class SmallFlop(Flop):
    """A kind of it."""


def what(value: Any) -> Any:
    """*value* as the record shows it: an exception by its type."""
    if isinstance(value, BaseException):
        return type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, dict) and "pid" in value:
        return "a process"
    return value


def einfo_of(einfo: Any) -> Any:
    """What a hook may read from the ExceptionInfo that it is given."""
    if not isinstance(einfo, ExceptionInfo):
        return what(einfo)
    text = str(einfo)
    return [
        einfo.type.__name__, type(einfo.exception).__name__, type(einfo.exc_info).__name__,
        text == einfo.traceback, text.startswith("Traceback"), "compat.py" in text,
    ]  # fmt: skip


class Noted(Task):
    """A base class of the user's own, which notes every hook that Celery calls."""

    abstract = True
    default_retry_delay = 0

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        record(task_id, "before_start", args, kwargs)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        record(task_id, "on_success", retval, args, kwargs)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record(task_id, "on_retry", what(exc), args, kwargs, einfo_of(einfo))

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        record(task_id, "on_failure", what(exc), args, kwargs, einfo_of(einfo))

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        record(task_id, "after_return", status, what(retval), args, kwargs, einfo_of(einfo))


class Stock(Noted):
    abstract = True
    acks_late = True


class Resilient(Noted, ResilientTask):
    """The user's base before ours."""

    abstract = True


class ResilientFirst(ResilientTask, Noted):
    """Ours before the user's."""

    abstract = True


BASES = {"stock": Stock, "resilient": Resilient, "installed": Noted}


@signals.task_prerun.connect
def _prerun(task_id: str, args: Any, kwargs: Any, **_: Any) -> None:
    record(task_id, "prerun", args, kwargs)


@signals.task_postrun.connect
def _postrun(task_id: str, retval: Any, state: str, **_: Any) -> None:
    record(task_id, "postrun", state, what(retval))


@signals.task_success.connect
def _success(sender: Any, result: Any, **_: Any) -> None:
    record(sender.request.id, "task_success", result)


@signals.task_retry.connect
def _retry(request: Any, reason: Any, einfo: Any, **_: Any) -> None:
    when = reason.when
    if "jitter" in request.id or isinstance(when, datetime):
        when = "later"
    elif isinstance(when, (int, float)):
        when = float(when)
    elif when:
        when = type(when).__name__
    record(request.id, "task_retry", what(reason.exc), when, einfo_of(einfo))


@signals.task_failure.connect
def _failure(task_id: str, exception: Any, args: Any, kwargs: Any, einfo: Any, **_: Any) -> None:
    record(task_id, "task_failure", what(exception), args, kwargs, einfo_of(einfo))


@signals.task_internal_error.connect
def _internal_error(task_id: str, exception: Any, **_: Any) -> None:
    record(task_id, "task_internal_error", what(exception))


Body = Callable[..., Any]


def each(name: str, bases: dict[str, Any] = BASES, **options: Any) -> Callable[[Body], Body]:
    """Define the decorated body as a task of every side."""

    def define(body: Body) -> Body:
        for side in SIDES:
            app.task(name=f"{side}.{name}", base=bases[side], **options)(body)
        return body

    return define


def begin(self: Any, *args: Any, **kwargs: Any) -> int:
    """Note the start of a body; how many retries there were."""
    record(self.request.id, "body", args, kwargs, self.request.retries)
    return int(self.request.retries)


# autoretry_for and its kin: one body, many options


def flaky(self: Any, failures: int = 0, error: str = "Flop", **words: Any) -> str:
    """Fail *failures* times with *error*, then succeed."""
    if begin(self, failures, error, **words) < failures:
        raise {"Flop": Flop, "SmallFlop": SmallFlop, "KeyError": KeyError}[error]("not yet")
    return f"after {self.request.retries}"


TWICE = {"autoretry_for": (Flop,), "max_retries": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "states_nothing": {},
    "autoretry": {"autoretry_for": (Flop,)},
    "dont": {"autoretry_for": (Flop,), "dont_autoretry_for": (SmallFlop,)},
    "never": {"autoretry_for": (Flop,), "max_retries": 0},
    "no_limit": {"autoretry_for": (Flop,), "max_retries": None},
    "twice": TWICE,
    "kwargs_limit": {"autoretry_for": (Flop,), "retry_kwargs": {"max_retries": 1}},
    "kwargs_countdown": {**TWICE, "retry_kwargs": {"countdown": 0.2}},
    "kwargs_queue": {**TWICE, "retry_kwargs": {"queue": "other", "countdown": 0}},
    "kwargs_args": {**TWICE, "retry_kwargs": {"args": (1, "SmallFlop")}},
    "delay": {**TWICE, "default_retry_delay": 0.1},
    "backoff_true": {**TWICE, "retry_backoff": True, "retry_jitter": False},
    "backoff_jitter": {**TWICE, "max_retries": 1, "retry_backoff": True},
    "backoff_number": {**TWICE, "max_retries": 1, "retry_backoff": 2, "retry_jitter": False},
    "backoff_max": {**TWICE, "retry_backoff": 3, "retry_backoff_max": 1, "retry_jitter": False},
    "backoff_fraction": {**TWICE, "retry_backoff": 0.25, "retry_jitter": False},
    "throws": {"throws": (Flop,)},
    "throws_and_retries": {**TWICE, "throws": (Flop,)},
    "annotated": {},
    "ignored_result": {**TWICE, "ignore_result": True},
    "errors_even_if_ignored": {
        **TWICE, "ignore_result": True, "store_errors_even_if_ignored": True,
    },
    "tracked": {**TWICE, "track_started": True},
    "rate_limited": {**TWICE, "rate_limit": "50/s"},
    "shadowed": TWICE,
}  # fmt: skip
for _name, _options in OPTIONS.items():
    each(_name, bind=True, **_options)(flaky)

each("acks_early", {"stock": Noted, "resilient": Resilient, "installed": Noted},
     bind=True, acks_late=False, **TWICE)(flaky)  # fmt: skip
each("ours_first", {**BASES, "resilient": ResilientFirst}, bind=True, **TWICE)(flaky)


class DjangoNoted(Noted, DjangoTask):
    abstract = True


class DjangoResilient(DjangoTask, Resilient):
    abstract = True


class DjangoStock(Stock, DjangoTask):
    abstract = True


DJANGO = {"stock": DjangoStock, "resilient": DjangoResilient, "installed": DjangoNoted}


@each("django", DJANGO, bind=True, **TWICE)
def on_commit(self: Any, failures: int) -> str:
    """Fail, then send another task when the transaction is committed, here at once."""
    if begin(self, failures) < failures:
        raise Flop("not yet")
    side, row, _ = self.request.id.split("|")
    other = app.tasks[f"{side}.django"]
    if row == "django":
        other.apply_async_on_commit((0,), task_id=f"{side}|django_committed|0")
    return "committed"


class CallsItself(Noted):
    """The way of Flask's documentation: a body runs inside of something."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        record(self.request.id, "entered")
        return self.run(*args, **kwargs)


class CallsSuper(Noted):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        record(self.request.id, "entered")
        return super().__call__(*args, **kwargs)


for _name, _base in {"calls_itself": CallsItself, "calls_super": CallsSuper}.items():
    each(_name, {
        "stock": type("S", (_base,), {"abstract": True, "acks_late": True}),
        "resilient": type("R", (_base, ResilientTask), {"abstract": True}),
        "installed": _base,
    }, bind=True, **TWICE)(flaky)  # fmt: skip


class Catches(Noted):
    """It takes whatever comes out of the body for an answer, the Retry too.

    The answer is always the same: the retry may end before the attempt that has published it.
    """

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = super().__call__(*args, **kwargs)
        except Exception as exc:
            record(self.request.id, "caught", what(exc))
            if kwargs.get("then") == "ignores":
                raise Ignore from None
        else:
            record(self.request.id, "answered", answer)
        return "caught"


CATCHES = {
    "stock": type("S", (Catches,), {"abstract": True, "acks_late": True}),
    "resilient": type("R", (Catches, ResilientTask), {"abstract": True}),
    "installed": Catches,
}


@each("caught", CATCHES, bind=True, autoretry_for=(KeyError,), max_retries=1)
def caught(self: Any, how: str, **words: Any) -> Any:
    """What its own ``__call__`` catches."""
    retries = begin(self, how, **words)
    if how == "ignores":
        raise Ignore
    if how == "rejects":
        raise Reject("not for me", requeue=False)
    if how == "replaces":
        side = self.request.id.split("|")[0]
        raise self.replace(app.signature(f"{side}.flaky_next", args=("replaced",)))
    if how == "raises_a_retry":
        raise Retry(exc=Flop("said by the task"), when=0)
    if how == "fails":
        raise Flop("for good")
    if retries < 2:
        raise self.retry(**FORMS[how]())
    return "caught"


each("caught_autoretry", CATCHES, bind=True, autoretry_for=(Flop,), max_retries=1,
     retry_kwargs={"countdown": 0})(flaky)  # fmt: skip
each("caught_kwargs_queue", CATCHES, bind=True, autoretry_for=(Flop,), max_retries=1,
     retry_kwargs={"countdown": 0, "queue": "other"})(flaky)  # fmt: skip


def catching(run: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator around ``task.run``, as error trackers have them."""

    @functools.wraps(run)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except Retry:
            return "caught"

    return wrapper


@each("decorated", bind=True, max_retries=1)
def decorated(self: Any) -> str:
    if begin(self) < 1:
        self.retry()
    return "caught"


for _side in SIDES:
    vars(app.tasks[f"{_side}.decorated"])["run"] = catching(app.tasks[f"{_side}.decorated"].run)


class NotedRequest(Request):  # type: ignore[misc]
    """A Request class of the user's own."""

    def on_accepted(self, *args: Any, **kwargs: Any) -> Any:
        record(self.id, "request.on_accepted")
        return super().on_accepted(*args, **kwargs)

    def on_retry(self, exc_info: Any) -> Any:
        record(self.id, "request.on_retry", what(getattr(exc_info.exception, "exc", None)))
        return super().on_retry(exc_info)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        record(self.id, "request.on_failure", exc_info.type.__name__)
        return super().on_failure(exc_info, *args, **kwargs)


for _name, _request in {
    "request": NotedRequest,
    "request_name": f"{__name__}:NotedRequest",
}.items():
    each(_name, bind=True, Request=_request, **TWICE)(flaky)

for _side in SIDES:
    _by_class = type("ByClass", (BASES[_side],), {
        "name": f"{_side}.by_class", "abstract": False, "run": flaky, **TWICE,
    })  # fmt: skip
    app.register_task(_by_class())
    shared_task(name=f"{_side}.shared", base=BASES[_side], bind=True, **TWICE)(flaky)


class Order(BaseModel):
    number: int
    failures: int = 0


@each("pydantic", bind=True, pydantic=True, **TWICE)
def pydantic(self: Any, order: Order) -> Order:
    if begin(self, repr(order)) < order.failures:
        raise Flop("not yet")
    return order


@each("bare", **TWICE)
def bare(failures: int) -> int:
    """Without bind."""
    request = app.current_task.request
    record(request.id, "body", failures, request.retries)
    if request.retries < failures:
        raise Flop("not yet")
    return failures


# self.retry in all its forms

SOON = {"countdown": 0.1}


def soon(**delta: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(**delta)


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "exc": lambda: {"exc": Flop("said by the task")},
    "exc_class": lambda: {"exc": Flop},
    "args": lambda: {"args": ("args", 2)},
    "kwargs": lambda: {"kwargs": {"note": "new"}},
    "args_and_kwargs": lambda: {"args": ("args_and_kwargs", 2), "kwargs": {"note": "new"}},
    "no_kwargs": lambda: {"args": ("no_kwargs", 2), "kwargs": {}},
    "countdown": lambda: {"countdown": 0.3},
    "countdown_zero": lambda: {"countdown": 0},
    "eta": lambda: {"eta": soon(seconds=0.3)},
    "eta_text": lambda: {"eta": soon(seconds=0.3).isoformat()},
    "eta_past": lambda: {"eta": soon(hours=-1)},
    "eta_naive": lambda: {"eta": soon(seconds=0.3).replace(tzinfo=None)},
    "eta_and_countdown": lambda: {"eta": soon(hours=1), "countdown": 0.1},
    "limit": lambda: {"max_retries": 1},
    "limit_and_exc": lambda: {"max_retries": 1, "exc": Flop("said by the task")},
    "limit_and_class": lambda: {"max_retries": 1, "exc": Flop},
    "limit_zero": lambda: {"max_retries": 0},
    "limit_higher": lambda: {"max_retries": 6},
    "queue": lambda: {"queue": "other"},
    "routing_key": lambda: {"exchange": "", "routing_key": "other"},
    "headers": lambda: {"headers": {"tenant": "acme"}},
    "positional": lambda: {"args": ("positional", 2), "kwargs": None, "exc": None, "throw": True},
    "exc_text": lambda: {"exc": "no exception"},
    "options": lambda: {"priority": 3, "time_limit": 50, "expires": 60, "serializer": "pickle"},
}


@each("asks", bind=True)
def asks(self: Any, form: str, times: int, note: str = "", **words: Any) -> str:
    """Ask for *times* retries in the form that has this name."""
    if begin(self, form, times, note, **words) < times:
        raise self.retry(**FORMS[form]())
    record(self.request.id, "delivered", (self.request.headers or {}).get("tenant"),
           self.request.delivery_info["routing_key"], self.request.timelimit,
           bool(self.request.expires))  # fmt: skip
    return "done"


each("asks_without_limit", bind=True, max_retries=None)(asks)
each("asks_never", bind=True, max_retries=0)(asks)


@each("asks_within", bind=True, max_retries=2)
def asks_within(self: Any, times: int) -> str:
    """Ask while another error is being handled."""
    if begin(self, times) < times:
        try:
            raise KeyError("the cause")
        except KeyError as exc:
            raise self.retry(exc=exc)  # noqa: B904
    return "done"


@each("asks_and_autoretries", bind=True, **TWICE)
def asks_and_autoretries(self: Any, how: str) -> str:
    retries = begin(self, how)
    if retries == 0:
        raise Flop("autoretry_for")
    if how == "then_asks" and retries < 4:
        self.retry(countdown=0, exc=KeyError("asked"))
    return "done"


@each("catches", bind=True, max_retries=1)
def catches(self: Any, after: str) -> str:
    """Catch the Retry that it has asked for, and go on."""
    try:
        if begin(self, after) < 2:
            self.retry()
    except Retry:
        if after == "raises":
            raise Flop("after the retry") from None
        if after == "ignores":
            raise Ignore from None
        if after == "raises_it_anew":
            raise
        return "caught"
    except MaxRetriesExceededError:
        return "no more"
    return "done"


@each("catches_control_flow", bind=True)
def catches_control_flow(self: Any, how: str) -> str:
    """Catch what would have ended it."""
    begin(self, how)
    side = self.request.id.split("|")[0]
    try:
        if how == "replaces":
            self.replace(app.signature(f"{side}.flaky_next", args=("replaced",)))
        raise Ignore if how == "ignores" else Reject("not for me", requeue=False)
    except Exception as exc:
        return what(exc)  # type: ignore[no-any-return]


@each("goes_on", bind=True, max_retries=1)
def goes_on(self: Any, after: str) -> str:
    """Ask without throwing, and go on."""
    if begin(self, after) < 1:
        retry = self.retry(throw=False)
        record(self.request.id, "returned", type(retry).__name__)
        if after == "raises":
            raise Flop("after the retry")
        if after == "raises_it":
            raise retry
    return "done"


@each("asks_where_called", bind=True)
def asks_where_called(self: Any, *words: Any) -> None:
    """What a body calls as a function: nothing is sent again, it raises what it is given."""
    record(None, "body", words)
    raise self.retry(**({"exc": Flop("said by the task")} if words else {}))


@each("calls", bind=True, **TWICE)
def calls(self: Any, *words: Any) -> str:
    """Call another task as a function, until it is well."""
    if begin(self, *words) < 1:
        app.tasks[f"{self.request.id.split('|')[0]}.asks_where_called"](*words)
    return "done"


@each("applies", bind=True, **TWICE)
def applies(self: Any, failures: int) -> Any:
    """Apply another task eagerly in the worker."""
    begin(self, failures)
    side, row, _ = self.request.id.split("|")
    other = app.tasks[f"{side}.twice"].apply((failures,), task_id=f"{side}|{row}|eager")
    return [other.state, what(other.result)]


@each("raises_a_retry", bind=True, max_retries=1)
def raises_a_retry(self: Any, when: Any = None) -> str:
    """Raise a Retry of its own making, which nobody has published."""
    if begin(self, when) < 2:
        raise Retry(exc=Flop("said by the task"), when=when)
    return "done"


@each("asks_by_celerys", bind=True, max_retries=1)
def asks_by_celerys(self: Any, times: int) -> str:
    """Ask by Celery's own function, past what any base class says."""
    if begin(self, times) < times:
        raise Task.retry(self, countdown=0)
    return "done"


# Control flow, limits, and what is no Exception


@each("rejects", bind=True)
def rejects(self: Any, requeue: bool) -> str:
    begin(self, requeue)
    if requeue and self.request.delivery_info.get("redelivered"):
        return "at last"
    raise Reject("not for me", requeue=requeue)


each("rejects_with_autoretry", bind=True, autoretry_for=(Exception,), max_retries=2)(rejects)


@each("ignores", bind=True, autoretry_for=(Exception,))
def ignores(self: Any) -> None:
    begin(self)
    raise Ignore


@each("replaces", bind=True, autoretry_for=(Flop,))
def replaces(self: Any) -> Any:
    begin(self)
    side = self.request.id.split("|")[0]
    raise self.replace(app.signature(f"{side}.flaky_next", args=("replaced",)))


@each("flaky_next", bind=True, **TWICE)
def flaky_next(self: Any, *args: Any) -> Any:
    """The next one of a chain, or the body of a chord: fails once."""
    if begin(self, *args) < 1:
        raise Flop("not yet")
    return args


@each("sleeps", bind=True, autoretry_for=(Flop,))
def sleeps(self: Any, catch: bool = False) -> str:
    begin(self, catch)
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        if catch:
            return "cleaned up"
        raise
    return "slept"


@each("sleeps_twice", bind=True, autoretry_for=(SoftTimeLimitExceeded,), max_retries=1)
def sleeps_twice(self: Any) -> None:
    begin(self)
    time.sleep(30)


@each("exits", bind=True)
def exits(self: Any) -> None:
    begin(self)
    raise SystemExit(3)


class NotJson:
    def __repr__(self) -> str:
        return "no JSON"


@each("result_not_json", bind=True)
def result_not_json(self: Any) -> Any:
    begin(self)
    return NotJson()


# What is called back; plain tasks of Celery's, in a record that belongs to the task they serve


@app.task(name="told.link", base=Task)
def told(result: Any, id_: str) -> None:
    record(id_, "link", what(result))


@app.task(name="told.errback", base=Task)
def told_error(failed: str, *, id_: str) -> None:
    record(id_, "errback of a name", failed)


@app.task(name="told.errback_here", base=Task)
def told_error_here(request: Context, exc: Any, traceback: Any, id_: str = "") -> None:
    record(request.id, "errback called here", what(exc), type(traceback).__name__)
