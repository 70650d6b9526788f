"""``celery -A app resilience``: what this app does about failures."""

# Every call of ``celery`` imports this module: what is heavy is imported where it is used.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.bin.worker import worker
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from celery_resilience.cli.options import app_of, ending, json_option, timeout_option
from celery_resilience.cli.unknown_flags import tell_of_install
from celery_resilience.errors import nearest

if TYPE_CHECKING:
    DYMGroup = click.Group
else:
    from click_didyoumean import DYMGroup

__all__ = ["resilience"]

# This module is imported by every call of ``celery``, that of a worker too.
tell_of_install(worker)

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
    """Show what this app does about failures, and what is wrong around it."""


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
@json_option
@click.pass_context
def explain(ctx: click.Context, /, name: str, tasks: int, as_json: bool, **kwargs: Any) -> None:
    """Explain what a failure leads to.

    NAME is an exception (requests.exceptions.ConnectTimeout, KeyError), a status (http:503) or a
    task (shop.charge).
    """
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.cli import render_explain as explained
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate import explain as explanation
    from celery_resilience.operate.dead_letters import load_tasks
    from celery_resilience.settings import Settings

    app = ctx.obj.app
    load_tasks(app)
    try:
        if name in app.tasks:
            told = explanation.of_task(app.tasks[name], Settings.of(app), tasks)
        else:
            told = explanation.of_exception(name)
            told["by_default"] = explained.by_default(told["by_default"])
    except ImproperlyConfigured as exc:
        raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc
    except (TypeError, ValueError) as exc:
        problem = printable(str(exc))
        near = nearest(name, app.tasks, cutoff=0.75)
        if name not in app.tasks and near:
            problem = f"there is no task {printable(name)}; did you mean {near}?"
        elif name not in app.tasks:
            problem += (
                ". If it is a task: this app has none of that name, so name its module in "
                "Celery(include=[...]), or let app.autodiscover_tasks() find it"
            )
        raise CeleryCommandException(problem, EX_FAILURE) from exc
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for title, text in explained.as_text(told):
        if title:
            ctx.obj.echo("\n" + ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)


@resilience.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0  a worker would take it
  1  it would not: the line, what is wrong with it, and what is meant
  2  wrong usage""",
)
@click.argument("file", metavar="FILE")
@json_option
@click.pass_context
def check(ctx: click.Context, /, file: str, as_json: bool, **kwargs: Any) -> None:
    """Check a file of policies before a worker reads it.

    With -A it is told as well which of the app's tasks each pattern is for.
    """
    from celery_resilience.cli import check as checked
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.dead_letters import load_tasks

    app = ctx.obj.app
    with ending():
        load_tasks(app)
        told = checked.check(app, file)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for line in checked.as_text(told, with_tasks=ctx.find_root().params.get("app", "") is not None):
        ctx.obj.echo(printable(line, lines=True))


@resilience.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0   no problems found, in what could be checked
  1   a problem was found
  2   wrong usage
  3   not known: the broker does not answer
  69  the broker can't be reached""",
)
@timeout_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, timeout: float, **kwargs: Any) -> None:
    """Find out what is wrong.

    Open dead letters, stuck retries, orphaned messages, misrouted queues, missing rights, tasks
    that are not covered: for each, the command or the setting that fixes it. What could not be
    checked is said.
    """
    from dataclasses import asdict

    from celery_resilience.cli.text import screen, wrapped
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.doctor import examine

    with ending():
        report = examine(ctx.obj.app, app_of(ctx), timeout)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        width = screen()
        for finding in report.findings:
            ctx.obj.echo(ctx.obj.style(wrapped(printable(finding.what), width), bold=True))
            ctx.obj.echo(wrapped(printable(f"Impact: {finding.impact}"), width, "  ", "    "))
            ctx.obj.echo(wrapped(printable(f"Fix: {finding.fix}"), width, "  ", "    "))
            ctx.obj.echo("")
        for note in report.notes:
            ctx.obj.echo(wrapped(printable(f"Note: {note}."), width, "", "  "))
        for unchecked in report.unchecked:
            ctx.obj.echo(wrapped(printable(f"Not checked: {unchecked}."), width, "", "  "))
        number = len(report.findings)
        problems = f"{number} problem{'' if number == 1 else 's'} found."
        missing = " Not everything could be checked." if report.unchecked else ""
        ctx.obj.echo((problems if number else "No problems found.") + missing)
    if report.findings:
        ctx.exit(EX_FAILURE)
