"""``celery -A app resilience``: what this app does about failures."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

if TYPE_CHECKING:
    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["resilience"]

_GROUP = "Resilience Options"
_EXIT_CODES = """\b
Exit codes:
  0  done
  1  there is no such task or exception, or its policy is wrong
  2  wrong usage"""


@click.group(cls=DYMGroup, epilog=_EXIT_CODES)
@click.pass_context
@handle_preload_options
def resilience(ctx: click.Context, **kwargs: Any) -> None:
    """Show what this app does about failures."""


@resilience.command(cls=CeleryCommand, epilog=_EXIT_CODES)
@click.argument("name")
@click.option(
    "--tasks",
    cls=CeleryOption,
    help_group=_GROUP,
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="For the peak rate: N tasks fail at the same moment.",
)
@click.option(
    "-j",
    "--json",
    "as_json",
    cls=CeleryOption,
    help_group=_GROUP,
    is_flag=True,
    help="Print JSON and nothing else.",
)
@click.pass_context
def explain(ctx: click.Context, /, name: str, tasks: int, as_json: bool, **kwargs: Any) -> None:
    """Explain what a failure leads to.

    NAME is an exception (requests.exceptions.ConnectTimeout, KeyError), a status (http:503) or a
    task (shop.charge).
    """
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.cli import explained, explanation
    from celery_resilience.deadletters import load_tasks
    from celery_resilience.redact import printable
    from celery_resilience.settings import Settings

    app = ctx.obj.app
    load_tasks(app)
    try:
        if name in app.tasks:
            told = explanation.of_task(app.tasks[name], Settings.of(app), tasks)
        else:
            told = explanation.of_exception(name)
    except ImproperlyConfigured as exc:
        raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc
    except (TypeError, ValueError) as exc:
        problem = printable(str(exc))
        near = difflib.get_close_matches(name, app.tasks, 1, cutoff=0.75)
        if name not in app.tasks and near:
            problem = f"there is no task {printable(name)}; did you mean {near[0]}?"
        raise CeleryCommandException(problem, EX_FAILURE) from exc
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for title, text in explained.as_text(told):
        if title:
            ctx.obj.echo("\n" + ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)
