"""Groups of dead letters, as text for a terminal and as JSON for a program."""

from __future__ import annotations

from typing import Any

from celery_resilience.cli.letter_json import iso
from celery_resilience.cli.render_letter import error_line
from celery_resilience.cli.text import ago, columns, room
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.groups import Group, Span
from celery_resilience.operate.ids import length_shown

__all__ = ["as_json", "lines"]

_HEADINGS = ["GROUP", "LETTERS", "FIRST", "LAST", "CAUSE, TASKS"]


def as_json(group: Group, redactor: Redactor) -> dict[str, Any]:
    """What JSON output says about a group."""
    newest = group.newest
    return {
        "group": group.name,
        "error": group.error,
        "frame": group.frame,
        "reason": group.reason.value,
        **_span(group),
        "newest": None if newest is None else newest.id,
        "message": "" if newest is None else redactor(newest.error.message),
        "tasks": [
            {"task": task, "fingerprint": group.fingerprints[task], **_span(span)}
            for task, span in group.tasks.items()
        ],
    }


def _span(span: Span) -> dict[str, Any]:
    first, last = iso(span.first), iso(span.last)
    return {"count": span.count, "first": first, "last": last}


def lines(groups: list[Group], redactor: Redactor) -> list[str]:
    """A heading, and for each group its cause and below it a line for each task."""
    length = length_shown(group.name for group in groups)
    rows = [_HEADINGS]
    for group in groups:
        said = "" if group.newest is None else redactor(group.newest.error.message)
        cause = printable(error_line(group.error, said)) or group.reason.value
        where = f"in {printable(group.frame)}: " if group.frame else ""
        rows.append([group.name[:length], *_cells(group), where + cause])
        for task, span in group.tasks.items():
            rows.append(["", *_cells(span), f"  {printable(task) or '?'}"])
    return columns(rows, room(), elastic=(4,), numbers=(1, 2, 3))


def _cells(span: Span) -> list[str]:
    return [f"{span.count:,}", ago(span.first), ago(span.last)]
