"""What the verbs of ``dlq`` and ``retries`` have in common: options, questions, exit codes."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from celery.bin.base import CeleryOption
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE, EX_UNAVAILABLE

if TYPE_CHECKING:
    from celery_resilience.filters import Filters

__all__ = [
    "EXIT_CODES",
    "Selection",
    "app_of",
    "ask",
    "changing",
    "ending",
    "filtering",
    "json_option",
    "limit_option",
    "option",
    "span",
    "timeout_option",
]

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0   done
  1   it failed, nothing was found, or you answered no
  2   wrong usage
  3   not known: the broker does not answer
  69  the broker can't be reached"""

#: Nobody can say what is asked for: neither yes nor no.
EX_NOT_KNOWN = 3

#: In which help group an option stands.
GROUP, _FILTERS = "Options", "Filters"


def option(*names: str, group: str = GROUP, **attributes: Any) -> Callable[[F], F]:
    """A Celery option in a help group of ours."""
    return click.option(*names, cls=CeleryOption, help_group=group, **attributes)


def json_option(command: F) -> F:
    """``--json``, as Celery's own commands have it."""
    return option("-j", "--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < float("inf"):
        raise click.BadParameter("give seconds, more than 0")
    return value


timeout_option = option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    callback=_seconds,
    help="How long to wait for an answer of the broker.",
)


limit_option = option(
    "--limit",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="List the first N and no more.",
)


# Which are meant


def _parsed(parse: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that reads what was typed with a function of ``filters``."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        from celery_resilience import filters

        read = getattr(filters, parse)
        if parse == "moment":
            read = functools.partial(read, now=time.time())
        try:
            if isinstance(value, tuple):
                return tuple(map(read, value))
            return None if value is None else read(value)
        except ValueError as exc:
            raise click.BadParameter(str(exc)) from exc

    return callback


#: Reads a span of time that was typed, such as ``10m``, in seconds.
span = _parsed("seconds")


def filtering(of: str) -> Callable[[F], F]:
    """Give a verb the options that filter letters or waiting retries (*of*); it gets them as its
    keyword argument *filters*."""
    names = ["task", "error", "queue", "since", "until", "args"]
    options = [
        ("--task", "PATTERN", "Tasks whose name matches: 'shop.*'.", {}),
        ("--error", "PATTERN", "Whose last error matches: Timeout, or '*: no such table*'.", {}),
        ("--queue", "QUEUE", "Which came from QUEUE.", {}),
        ("--since", "TIME", "Which failed last at TIME or later: 2h (ago), 2026-03-01T14:30.",
         {"callback": _parsed("moment")}),
        ("--until", "TIME", "Which failed last before TIME.", {"callback": _parsed("moment")}),
        ("--args", "K=V", "Which were called with this argument: customer=42; can be repeated.",
         {"multiple": True, "callback": _parsed("argument")}),
    ]  # fmt: skip
    if of == "letters":
        names.append("reason")
        options.append(("--reason", "REASON", "Which died of REASON.", {"callback": _reason}))

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def filtered(*given: Any, **kwargs: Any) -> Any:
            from celery_resilience.filters import Filters

            filters = Filters(**{name: kwargs.pop(name) for name in names})
            return command(*given, filters=filters, **kwargs)

        made: Any = filtered
        for name, metavar, text, more in reversed(options):
            made = option(name, metavar=metavar, help=text, group=_FILTERS, **more)(made)
        return made  # type: ignore[no-any-return]

    return decorate


def _reason(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    from celery_resilience.decision import Reason

    try:
        return None if value is None else Reason(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is none of {', '.join(reason.value for reason in Reason)}"
        ) from None


@dataclass(frozen=True)
class Selection:
    """What a verb that changes something was told: which, and how."""

    ids: tuple[str, ...]
    filters: Filters
    limit: int | None
    dry_run: bool
    yes: bool
    as_json: bool

    @property
    def meant(self) -> tuple[str, ...] | str:
        """The ids, or ``"all"``."""
        return self.ids or "all"


def changing(of: str) -> Callable[[F], F]:
    """Give a verb that changes letters or waiting retries (*of*) the options of a Selection; it
    gets them as its keyword argument *selection*."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def chosen(
            *given: Any, ids: tuple[str, ...], everything: bool, filters: Filters,
            limit: int | None, dry_run: bool, yes: bool, as_json: bool, **kwargs: Any,
        ) -> Any:  # fmt: skip
            if bool(ids) == (everything or bool(filters)):
                raise click.UsageError(f"Give the ids of {of}, filters, or --all.")
            if ids and limit is not None:
                raise click.UsageError("--limit goes with filters or --all.")
            selection = Selection(ids, filters, limit, dry_run, yes, as_json)
            return command(*given, selection=selection, **kwargs)

        made: Any = filtering(of)(chosen)
        for wrap in (
            json_option,
            option("-y", "--yes", is_flag=True, help="Don't ask."),
            option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
            option("--limit", type=click.IntRange(min=0), metavar="N", help="The first N alone."),
            option("--all", "everything", is_flag=True, help=f"All {of} that are there now."),
            click.argument("ids", metavar="[ID]...", nargs=-1),
        ):
            made = wrap(made)
        return made  # type: ignore[no-any-return]

    return decorate


# Asking, and the end


def ask(what: str, question: str) -> None:
    """Ask on the terminal; without one, refuse to change *what*."""
    if not sys.stdin.isatty():
        raise CeleryCommandException(
            f"{what} and nobody to ask: add --yes, or --dry-run to look first", EX_FAILURE
        )
    click.confirm(question, abort=True, err=True)


@contextmanager
def ending() -> Iterator[None]:
    """End a command with the exit code of whatever goes wrong."""
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.brokers.reach import NoAnswer, Unreachable
    from celery_resilience.errors import ResilienceError
    from celery_resilience.redact import printable

    try:
        yield
    except NoAnswer as exc:
        raise CeleryCommandException(printable(str(exc)), EX_NOT_KNOWN) from exc
    except Unreachable as exc:
        raise CeleryCommandException(printable(str(exc)), EX_UNAVAILABLE) from exc
    except (ResilienceError, ImproperlyConfigured) as exc:
        raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc


def app_of(ctx: click.Context) -> str:
    """How ``celery`` was called, as far as the app goes."""
    app = ctx.find_root().params.get("app")
    return f"celery -A {app}" if isinstance(app, str) else "celery"
