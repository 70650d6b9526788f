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

from celery_resilience.cli.stderr import warnings_shown

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters

__all__ = [
    "EXIT_CODES",
    "EX_NOT_KNOWN",
    "Selection",
    "app_of",
    "ask",
    "ask_why",
    "because",
    "changing",
    "ending",
    "filtering",
    "json_option",
    "limit_option",
    "needs_app",
    "option",
    "span",
    "timeout_option",
    "up_to",
]

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0   done
  1   it failed, nothing was found, or you answered no
  2   wrong usage
  3   not known: the broker does not answer, or not all letters can be seen just now
  69  the broker can't be reached"""
#: Neither "there are letters" nor "there are none".
EX_NOT_KNOWN = 3
#: So many lines a terminal gets if nobody says how many.
_LINES = 20

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
    help="How long to wait for an answer of the broker, or of the result store.",
)


def _limit(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of at least 0; -1 for ``all``, None for nothing."""
    if value is None or value == "all":
        return None if value is None else -1
    if not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number of at least 0 nor all")
    return int(value)


limit_option = option(
    "--limit",
    callback=_limit,
    metavar="N|all",
    help=f"List so many and no more. [default: {_LINES} on a terminal, else all]",
)


def up_to(limit: int | None, as_json: bool = False) -> int | None:
    """How many are listed if *limit* was typed; None: all of them."""
    from celery_resilience.cli.text import on_terminal

    if limit is None:
        return _LINES if on_terminal() and not as_json else None
    return None if limit < 0 else limit


# Which are meant


def _parsed(parse: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that reads what was typed with a function of ``filters``."""

    def callback(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
        from celery_resilience.messages import filters

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
    names = ["task", "error", "group", "queue", "since", "until", "args"]
    moment = {"callback": _parsed("moment")}
    options: list[tuple[str, str, str, dict[str, Any]]] = [
        ("--task", "PATTERN", "Tasks whose name matches: 'shop.*'.", {}),
        ("--error", "PATTERN", "Whose last error matches: Timeout, or '*: no such table*'.", {}),
        ("--group", "GROUP", "Whose last error has this cause: a group of dlq groups, a "
         "fingerprint, or how it begins.", {}),
        ("--queue", "QUEUE", "Which came from QUEUE.", {}),
        ("--since", "TIME", "Which failed last at TIME or later: 2h or 5min (ago), today, 12:36, "
         "2026-03-01T14:30.", moment),
        ("--until", "TIME", "Which failed last before TIME.", moment),
        ("--args", "K=V", "Which were called with this argument, and all others that are given: "
         "customer=42.", {"callback": _parsed("argument")}),
    ]  # fmt: skip
    if of == "letters":
        names.append("reason")
        options.append(("--reason", "REASON", "Which died of REASON.", {"callback": _reason}))

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def filtered(*given: Any, **kwargs: Any) -> Any:
            from celery_resilience.messages.filters import Filters

            said = {name: kwargs.pop(name) for name in names}
            # Each that is given has to accept: so the last beginning, and the first end.
            said["since"] = max(said["since"], default=None)
            said["until"] = min(said["until"], default=None)
            return command(*given, filters=Filters(**said), **kwargs)

        made: Any = filtered
        for name, metavar, text, more in reversed(options):
            made = option(name, metavar=metavar, help=text, group=_FILTERS, multiple=True, **more)(
                made
            )
        return made  # type: ignore[no-any-return]

    return decorate


def _reason(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Any:
    from celery_resilience.policy.decision import Reason

    known = [reason.value for reason in Reason]
    for wanted in value:
        if wanted not in known:
            raise click.BadParameter(f"{wanted!r} is none of {', '.join(known)}")
    return tuple(map(Reason, value))


@dataclass(frozen=True)
class Selection:
    """What a verb that changes something was told: which, and how."""

    ids: tuple[str, ...]
    filters: Filters
    limit: int | None
    dry_run: bool
    yes: bool
    as_json: bool
    #: Why, of what takes something away.
    because: str = ""

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
            limit: int | None, dry_run: bool, yes: bool, as_json: bool, because: str = "",
            **kwargs: Any,
        ) -> Any:  # fmt: skip
            if bool(ids) == (everything or bool(filters)):
                raise click.UsageError(f"Give the ids of {of}, filters, or --all.")
            if ids and limit is not None:
                raise click.UsageError("--limit goes with filters or --all.")
            most = None if limit is None or limit < 0 else limit
            selection = Selection(ids, filters, most, dry_run, yes, as_json, because)
            return command(*given, selection=selection, **kwargs)

        made: Any = filtering(of)(chosen)
        for wrap in (
            json_option,
            option("-y", "--yes", is_flag=True, help="Don't ask."),
            option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
            option("--limit", callback=_limit, metavar="N|all", help="The first N alone."),
            option("--all", "everything", is_flag=True, help=f"All {of} that are there now."),
            click.argument("ids", metavar="[ID]...", nargs=-1),
        ):
            made = wrap(made)
        return made  # type: ignore[no-any-return]

    return decorate


def because(command: F) -> F:
    """``--because``, for a verb that takes something away; it stands in its Selection."""
    return option(
        "--because", metavar="WHY", default="", help="Why, for the log; without a terminal it is "
        "needed for more than one.",
    )(command)  # fmt: skip


# Asking, and the end


def ask(what: str, question: str) -> None:
    """Ask on the terminal; without one, refuse to change *what*."""
    if not sys.stdin.isatty():
        raise CeleryCommandException(
            f"{what} and nobody to ask: add --yes, or --dry-run to look first", EX_FAILURE
        )
    click.confirm(question, abort=True, err=True)


def ask_why(number: int, selection: Selection) -> str:
    """Why *number* letters or retries are taken away: as it was typed, or is asked for.

    Where nobody can be asked, more than one need ``--yes`` and ``--because``.
    """
    if number < 2 or selection.because:
        return selection.because
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{number:,} would be dropped: without a terminal that needs --yes and --because WHY."
        )
    return str(click.prompt("Because", err=True))


@contextmanager
def ending() -> Iterator[None]:
    """End a command with the exit code of whatever goes wrong."""
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.brokers.connect import NoAnswer, Unreachable
    from celery_resilience.errors import ResilienceError
    from celery_resilience.messages.redact import printable

    try:
        with warnings_shown():
            yield
    except NoAnswer as exc:
        raise CeleryCommandException(printable(str(exc)), EX_NOT_KNOWN) from exc
    except Unreachable as exc:
        raise CeleryCommandException(printable(str(exc)), EX_UNAVAILABLE) from exc
    except (ResilienceError, ImproperlyConfigured) as exc:
        raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc


def needs_app(ctx: click.Context) -> None:
    """Refuse to go on where neither an app nor a broker was named: Celery would ask for RabbitMQ
    on this machine."""
    given = ctx.find_root().params
    conf = ctx.obj.app.conf
    if given.get("app", "") is None and not (
        given.get("broker") or conf.broker_read_url or conf.broker_url
    ):
        verb, here = "", ctx
        while here.parent is not None:
            verb, here = f"{here.info_name} {verb}".strip(), here.parent
        raise click.UsageError(f"no app was given: celery -A YOUR_APP {verb}")


def app_of(ctx: click.Context) -> str:
    """How ``celery`` was called, as far as the app goes."""
    app = ctx.find_root().params.get("app")
    return f"celery -A {app}" if isinstance(app, str) else "celery"
