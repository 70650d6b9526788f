"""``celery -A app resilience``: explain failures, check policies, find problems."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand, CeleryOption, handle_preload_options
from celery.bin.worker import worker
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from celery_resilience.cli.exits import app_of, ending
from celery_resilience.cli.options import json_option, timeout_option
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
  1  no such task or exception, or its policy is invalid
  2  wrong usage"""


@click.group(cls=DYMGroup, epilog=_EXIT_CODES)
@click.pass_context
@handle_preload_options
def resilience(ctx: click.Context, **kwargs: Any) -> None:
    """Explain what this app does about failures, and find problems."""


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
    help="For the peak rate: assume that N tasks fail at once.",
)
@json_option
@click.pass_context
def explain(ctx: click.Context, /, name: str, tasks: int, as_json: bool, **kwargs: Any) -> None:
    """Explain what a failure leads to.

    NAME is an exception (requests.exceptions.ConnectTimeout, KeyError), a status (http:503) or a
    task (shop.charge).
    """
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.cli.render_explain import as_text, by_default
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.app_info import load_tasks
    from celery_resilience.operate.explain import of_exception, of_task
    from celery_resilience.settings import Settings

    app = ctx.obj.app
    load_tasks(app)
    try:
        if name in app.tasks:
            told = of_task(app.tasks[name], Settings.of(app), tasks)
        else:
            told = of_exception(name)
            told["by_default"] = by_default(told["by_default"])
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
    for title, text in as_text(told):
        if title:
            ctx.obj.echo("\n" + ctx.obj.style(title, bold=True))
        ctx.obj.echo(text)


@resilience.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0  valid
  1  invalid: the line and the fix are printed
  2  wrong usage""",
)
@click.argument("file", metavar="FILE")
@json_option
@click.pass_context
def check(ctx: click.Context, /, file: str, as_json: bool, **kwargs: Any) -> None:
    """Check a policy file before a worker reads it.

    With -A it also lists which of the app's tasks each pattern matches.
    """
    from celery_resilience.cli.check import as_text
    from celery_resilience.cli.check import check as checked
    from celery_resilience.messages.redact import printable
    from celery_resilience.operate.app_info import load_tasks

    app = ctx.obj.app
    with ending():
        load_tasks(app)
        told = checked(app, file)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for line in as_text(told, with_tasks=ctx.find_root().params.get("app", "") is not None):
        ctx.obj.echo(printable(line, lines=True))


@resilience.command(
    cls=CeleryCommand,
    epilog="""\b
Exit codes:
  0   no problems found in what could be checked
  1   at least one problem found
  2   wrong usage
  3   not known: the broker does not answer
  69  broker unreachable""",
)
@timeout_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, timeout: float, **kwargs: Any) -> None:
    """Find problems, and print how to fix each.

    Open dead letters, stuck retries, orphaned messages, misrouted queues, missing permissions,
    tasks that are not covered. What could not be checked is listed too.
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
