"""The options that verbs of ``dlq``, ``retries`` and ``resilience`` have in common."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from celery.bin.base import CeleryOption

if TYPE_CHECKING:
    from celery_resilience.messages.filters import Filters

__all__ = [
    "Selection",
    "because",
    "changing",
    "filtering",
    "json_option",
    "limit_option",
    "option",
    "span",
    "timeout_option",
    "up_to",
]

F = TypeVar("F", bound=Callable[..., Any])

#: How many lines a terminal gets by default.
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
        raise click.BadParameter(f"must be more than 0 seconds, got {value:g}")
    return value


timeout_option = option(
    "--timeout",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    callback=_seconds,
    help="How long to wait for an answer from the broker or the result store.",
)


def _limit(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A number of at least 0; -1 for ``all``, None for nothing."""
    if value is None or value == "all":
        return None if value is None else -1
    if not value.isdecimal():
        raise click.BadParameter(f"must be a number >= 0, or all, got {value!r}")
    return int(value)


limit_option = option(
    "--limit",
    callback=_limit,
    metavar="N|all",
    help=f"List at most N. [default: {_LINES} on a terminal, else all]",
)


def up_to(limit: int | None, as_json: bool = False) -> int | None:
    """How many are listed if *limit* was typed; None: all of them."""
    from celery_resilience.cli.text import on_terminal

    if limit is None:
        return _LINES if on_terminal() and not as_json else None
    return None if limit < 0 else limit


# Which are meant


def _parsed(parse: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that parses an option with a function of ``filters``."""

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
    """Give a verb the options that filter letters or scheduled retries (*of*); it gets them as its
    keyword argument *filters*."""
    names = ["task", "error", "group", "queue", "since", "until", "args"]
    moment = {"callback": _parsed("moment")}
    options: list[tuple[str, str, str, dict[str, Any]]] = [
        ("--task", "PATTERN", "Only tasks whose name matches: 'shop.*'.", {}),
        ("--error", "PATTERN", "Only where the last error matches: Timeout, '*: no such*'.", {}),
        ("--group", "GROUP", "Only where the last error has this cause: a group of dlq "
         "groups, a fingerprint, or the beginning of one.", {}),
        ("--queue", "QUEUE", "Only from QUEUE.", {}),
        ("--since", "TIME", "Only where the last attempt failed at TIME or later: 2h or 5min "
         "(ago), today, 12:36, 2026-03-01T14:30.", moment),
        ("--until", "TIME", "Only where the last attempt failed before TIME.", moment),
        ("--args", "K=V", "Only calls with this argument: customer=42. If given several times, "
         "all must match.", {"callback": _parsed("argument")}),
    ]  # fmt: skip
    if of == "letters":
        names.append("reason")
        options.append(("--reason", "REASON", "Only with this reason.", {"callback": _reason}))

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
            raise click.BadParameter(f"unknown reason {wanted!r}; choose from {', '.join(known)}")
    return tuple(map(Reason, value))


@dataclass(frozen=True)
class Selection:
    """The options of a verb that changes something: which, and how."""

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
    """Give a verb that changes letters or scheduled retries (*of*) the options of a Selection; it
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
            option("-y", "--yes", is_flag=True, help="Do not ask for confirmation."),
            option("--dry-run", is_flag=True, help="Show what would be done, without doing it."),
            option("--limit", callback=_limit, metavar="N|all", help="At most N of them."),
            option("--all", "everything", is_flag=True, help=f"All {of} that exist now."),
            click.argument("ids", metavar="[ID]...", nargs=-1),
        ):
            made = wrap(made)
        return made  # type: ignore[no-any-return]

    return decorate


def because(command: F) -> F:
    """``--because``, for a verb that takes something away; it stands in its Selection."""
    return option(
        "--because", metavar="WHY", default="", help="Reason, for the log; required for more than "
        "one when not on a terminal.",
    )(command)  # fmt: skip
