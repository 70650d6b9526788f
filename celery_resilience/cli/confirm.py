"""Prompts: confirm a change, give the reason for a removal."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

import sys

import click
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE

from celery_resilience.cli.options import Selection

__all__ = ["ask", "ask_why"]


def ask(what: str, question: str) -> None:
    """Ask on the terminal; without one, refuse to change *what*."""
    if not sys.stdin.isatty():
        raise CeleryCommandException(
            f"{what}: not a terminal, cannot prompt: pass --yes, or --dry-run to preview",
            EX_FAILURE,
        )
    click.confirm(question, abort=True, err=True)


def ask_why(number: int, selection: Selection) -> str:
    """Why *number* letters or retries are removed: as it was typed, or by a prompt.

    Without a terminal more than one needs ``--yes`` and ``--because``.
    """
    if number < 2 or selection.because:
        return selection.because
    if not sys.stdin.isatty():
        why = "not a terminal, cannot prompt: pass --yes and --because WHY"
        raise click.UsageError(f"{number:,} to drop: {why}")
    return str(click.prompt("Because", err=True))
