"""One line that makes an app lose nothing."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from celery import Celery, signals

from celery_resilience.errors import did_you_mean
from celery_resilience.task.base import ResilientTask, watch
from celery_resilience.task.coverage import INSTALLED, is_meant
from celery_resilience.worker.expiration import keep_expiring
from celery_resilience.worker.flags import add_flags

__all__ = ["install"]

logger = logging.getLogger("celery_resilience")

_NOT_THE_USERS = frozenset({"celery", "celery_resilience", "contextlib"})


def install(app: Any, classify: bool = False, only: Iterable[str] | None = None) -> None:
    """Let every task of *app* end in its result, a scheduled retry or a dead letter.

    Each task is retried as it states itself: by a ``failure_policy``, by Celery's own options or
    by ``self.retry``. With *classify* the classifier decides about the tasks that state nothing;
    without it they are given up at once, as Celery does, and become dead letters. *only* names
    the tasks that are meant, as patterns: ``["cron.*"]``; the others stay as they are.

    Call it right after ``Celery(...)``, before any task is defined: tasks that exist already are
    refused (RuntimeError). Twice is once; a second call that says something else is refused
    (ValueError). Celery's own tasks (``celery.*``) are left alone, but for those that run the
    app's tasks on its arguments: ``celery.chunks``, ``celery.map`` and ``celery.starmap``, and
    ``celery.accumulate``, which carries its results.
    """
    if not isinstance(app, Celery):
        raise TypeError(f"install takes the Celery app itself, got {app!r}: install(app)")
    patterns = None if only is None else _patterns(only)
    said = (bool(classify), patterns)
    before = app.__dict__.get(INSTALLED)
    if before is not None:
        if before != said:
            raise ValueError(
                f"install(app) was called with classify={before[0]}, only={before[1]} before; "
                f"now with classify={said[0]}, only={said[1]}: call it once"
            )
        return
    _refuse_if_late(app)
    app.__dict__[INSTALLED] = said
    add_flags(app)
    watch(app)
    keep_expiring(app)
    _give_our_base(app, bool(classify), patterns)
    signals.worker_ready.connect(partial(_warn_of_misses, app, patterns or ()), weak=False)


def _patterns(only: Any) -> tuple[str, ...]:
    if isinstance(only, str):
        raise TypeError(f"install: only takes a list of patterns, got {only!r}: write [{only!r}]")
    patterns = tuple(only) if isinstance(only, Iterable) else (None,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"install: only takes a list of patterns of task names, got {only!r}")
    return patterns


def _warn_of_misses(app: Any, patterns: Iterable[str], sender: Any, **_: Any) -> None:
    """Tell of *patterns* that are for no task: their tasks are stock Celery's, and can be lost."""
    for pattern in patterns if sender.app is app else ():
        if not any(fnmatchcase(name, pattern) for name in app.tasks):
            meant = did_you_mean(pattern, app.tasks)
            logger.warning("install(only=[%r]) matches no task of this app%s", pattern, meant)


def _refuse_if_late(app: Any) -> None:
    made = [name for name in app._tasks if not name.startswith("celery.")]
    if made or app._pending:
        which = f" ({made[0]}, for one)" if made else ""
        raise RuntimeError(
            f"install(app) comes too late: tasks of this app are defined already{which}. "
            "Call it right after app = Celery(...)."
        )


def _give_our_base(app: Any, classify: bool, patterns: tuple[str, ...] | None) -> None:
    """Mix ours into the base of every task that the app makes from now on."""
    from_fun: Callable[..., Any] = app._task_from_fun
    register: Callable[..., Any] = app.register_task

    def _task_from_fun(fun: Any, name: Any = None, base: Any = None, **options: Any) -> Any:
        name = name or app.gen_task_name(fun.__name__, fun.__module__)
        if is_meant(name, patterns):
            base = _mixed(base or app.Task, classify)
        with _warnings_at_the_users_line(name in app._tasks):
            return from_fun(fun, name=name, base=base, **options)

    def register_task(task: Any, **options: Any) -> Any:
        task = task() if isinstance(task, type) else task
        cls = type(task)
        name = task.name or app.gen_task_name(cls.__name__, cls.__module__)
        if is_meant(name, patterns):
            task.__class__ = _mixed(cls, classify)
        with _warnings_at_the_users_line(name in app._tasks):
            return register(task, **options)

    def into_registry(task: Any) -> None:
        if task.name is not None and is_meant(task.name, patterns):
            register_task(task)
        else:
            into(task)

    app._task_from_fun = _task_from_fun
    app.register_task = register_task
    into: Callable[..., Any] = app._tasks.register
    app._tasks.register = into_registry
    for task in list(app._tasks.values()):  # Celery's own, if it has made them already
        if is_meant(task.name, patterns):
            with suppress(AttributeError):
                del type(task).acks_late  # Celery's default, which the user has not written
            register_task(task)


@contextmanager
def _warnings_at_the_users_line(is_there: bool) -> Iterator[None]:
    """What Celery warns of while a task *is_there* already: it takes the first line that is not
    its own for the user's, and that would be one of ours."""
    if not is_there:
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    frame: Any = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_USERS:
        frame = frame.f_back
    told = frame.f_globals
    for each in caught:
        warnings.warn_explicit(
            each.message, each.category, frame.f_code.co_filename, frame.f_lineno,
            told.get("__name__", ""), told.setdefault("__warningregistry__", {}),
        )  # fmt: skip


def _mixed(base: type, classify: bool) -> type:
    """*base* with our behaviour between it and Celery's; what *base* says itself comes first."""
    if issubclass(base, ResilientTask):
        return base
    bases = (ResilientTask,) if issubclass(ResilientTask, base) else (base, ResilientTask)
    attributes = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "abstract": True,
        "classify_failures": classify,
    }
    if base.__dict__.get("name"):  # a class-based task, not a base
        attributes["abstract"] = False
    return type(base.__name__, bases, attributes)
