"""What is kept of an exception: text, never the object."""

from __future__ import annotations

import os
import re
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from celery_resilience.classify.foreign import let_through
from celery_resilience.classify.reading import (
    cause_of,
    context_is_suppressed,
    context_of,
    traceback_of,
)
from celery_resilience.messages.history import clipped

__all__ = ["MESSAGE", "Cause", "ErrorRecord", "said", "type_name"]

#: The most characters of an exception's own words, and of a traceback, that are kept.
MESSAGE = 2_000
_TRACEBACK = 24_000
_CAUSES = 8
#: The most frames of one exception in a traceback, and of its words there: what it said is kept
#: beside it, and must not take the place of the frames.
_FRAMES = 60
_SAID = 500


@dataclass(frozen=True)
class Cause:
    """One link of an exception's chain of causes."""

    error: str
    message: str


@dataclass(frozen=True)
class ErrorRecord:
    """What is kept of an exception: text, never the object."""

    #: The exception's type, ``module.Name``.
    error: str = ""
    message: str = ""
    #: What it was raised from, nearest first.
    causes: tuple[Cause, ...] = ()
    #: The last part of the traceback: the innermost frames are the ones kept.
    traceback: str = ""
    #: The innermost frame of the task's own code, ``module.function``; groups letters.
    frame: str = ""

    @classmethod
    def of(cls, exception: BaseException, with_traceback: bool = True) -> ErrorRecord:
        """The facts of *exception*; whatever its methods raise, this does not."""
        causes: list[Cause] = []
        seen = {id(exception)}
        link = _cause(exception)
        while link is not None and id(link) not in seen and len(causes) < _CAUSES:
            seen.add(id(link))
            causes.append(Cause(type_name(link), clipped(said(link))))
            link = _cause(link)
        return cls(
            error=type_name(exception),
            message=clipped(said(exception), MESSAGE),
            causes=tuple(causes),
            traceback=_traceback(exception) if with_traceback else "",
            frame=_frame(exception),
        )

    def clipped(self, limit: int) -> ErrorRecord:
        """The same with at most *limit* characters of traceback, and little more of the rest."""
        return replace(
            self,
            message=clipped(self.message, 200 + limit // 4),
            causes=self.causes if limit > 2_000 else (),
            traceback=_innermost(self.traceback, limit),
            frame=clipped(self.frame, 200),
        )

    @classmethod
    def from_json(cls, data: object) -> ErrorRecord:
        """The facts in *data*, a letter's ``error``; what can't be read is left out."""
        if not isinstance(data, Mapping):
            return cls()
        causes = data.get("causes")
        links = [c for c in causes if isinstance(c, Mapping)] if isinstance(causes, list) else []
        return cls(
            causes=tuple(
                Cause(clipped(str(c.get("error", ""))), clipped(str(c.get("message", ""))))
                for c in links[:_CAUSES]
            ),
            **{
                name: str(data.get(name) or "")[-_TRACEBACK - 2 :]
                for name in ("error", "message", "traceback", "frame")
            },
        )


def type_name(exception: BaseException) -> str:
    """``module.Name`` of an exception, ``Name`` alone for a built-in one."""
    cls = type(exception)
    module, name = str(cls.__module__), cls.__qualname__
    return clipped(name if module in ("builtins", "") else f"{module}.{name}", 200)


def said(exception: BaseException) -> str:
    """What *exception* says, or that it can't."""
    try:
        return str(exception)
    except BaseException as problem:
        let_through(problem)
        return f"<its __str__ raised {type(problem).__name__}>"


def _cause(exception: BaseException) -> BaseException | None:
    cause = cause_of(exception)
    if cause is None and not context_is_suppressed(exception):
        cause = context_of(exception)
    return cause  # type: ignore[no-any-return]


def _traceback(exception: BaseException) -> str:
    try:
        # A frame limit below zero keeps the innermost ones.
        told = traceback.TracebackException(
            type(exception), exception, traceback_of(exception), limit=-_FRAMES
        )
        return _innermost("".join(_formatted(told)), _TRACEBACK)
    except BaseException as problem:
        let_through(problem)
        return f"<its traceback could not be formatted: {type(problem).__name__}>"


def _formatted(told: traceback.TracebackException, level: int = 0) -> Iterator[str]:
    """What `traceback` makes of an exception and of what it was raised from, its words cut."""
    cause = told.__cause__
    context = None if told.__suppress_context__ else told.__context__
    for before, how in ((cause, _DIRECTLY), (None if cause else context, _MEANWHILE)):
        if before is not None and level < _CAUSES:
            yield from _formatted(before, level + 1)
            yield how
    if told.stack:
        yield "Traceback (most recent call last):\n"
        yield from told.stack.format()
    for said in told.format_exception_only():
        yield said if len(said) <= _SAID else f"{said[: _SAID - 2]}…\n"
    # Those of an exception group, from Python 3.11 on.
    for number, inner in enumerate(getattr(told, "exceptions", None) or (), 1):
        if level < _CAUSES:
            yield f"  {number}:\n"
            yield textwrap.indent("".join(_formatted(inner, level + 1)), "  | ")


def _innermost(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…\n" + text[len(text) - limit :]


_DIRECTLY = "\nThe above exception was the direct cause of the following exception:\n\n"
_MEANWHILE = "\nDuring handling of the above exception, another exception occurred:\n\n"

#: Frames of these are the machinery, not the task.
_MACHINERY = ("celery.", "billiard.", "kombu.", "celery_resilience.")
#: And so is the standard library; what is installed lies below it or beside it.
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_STANDARD = ("<frozen ", f"{Path(os.__file__).parent}{os.sep}")


def _frame(exception: BaseException) -> str:
    own, first = "", ""
    tb = traceback_of(exception)
    for _ in range(100_000):
        if tb is None:
            break
        module = str(tb.tb_frame.f_globals.get("__name__", ""))
        code, tb = tb.tb_frame.f_code, tb.tb_next
        path = code.co_filename
        if module.startswith(_MACHINERY) or (
            path.startswith(_STANDARD) and _INSTALLED.search(path) is None
        ):
            continue
        package = module.partition(".")[0]
        first = first or package
        # An application may be installed as a package: then its own are those of the body's.
        if _INSTALLED.search(path) is None or package == first:
            own = f"{module}.{code.co_name}"
    return own
