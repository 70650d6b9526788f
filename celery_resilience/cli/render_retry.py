"""A scheduled retry as text for a terminal, and as JSON for a program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_resilience.cli.letter_json import details, iso
from celery_resilience.cli.render_letter import (
    body,
    error_line,
    listed,
    particulars,
    tried,
    verdict,
)
from celery_resilience.cli.text import columns, moment, room, screen, short, span
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.scheduled_retry import ScheduledRetry

__all__ = ["as_json", "as_row", "headlines", "story"]

HEADINGS = ("ID", "DUE IN", "QUEUE", "TASK", "ATTEMPTS", "ERROR")


# For a program


def as_json(retry: ScheduledRetry, redactor: Redactor, *, whole: bool = False) -> dict[str, Any]:
    """What JSON output says about a scheduled retry; *whole* adds what ``show`` shows."""
    letter = redactor.letter(retry.letter)
    told: dict[str, Any] = {
        "id": letter.task_id,
        "task": letter.task,
        "queue": letter.envelope.queue,
        "due": iso(retry.due),
        "due_in": round(retry.left, 3),
        "attempts": letter.history.count,
        "error": letter.error.error,
        "message": letter.error.message,
        "kind": letter.kind,
        "rule": letter.verdict_rule,
        "group": letter.group,
        "fingerprint": letter.fingerprint,
    }
    return {**told, **details(letter)} if whole else told


# For a person


def as_row(retry: ScheduledRetry, redactor: Redactor) -> list[str]:
    """The cells of a scheduled retry's line in ``ls``."""
    letter = redactor.letter(retry.letter)
    return [
        printable(letter.task_id) or "?",
        short(retry.left) if retry.left > 0 else f"-{short(-retry.left)}",
        printable(letter.envelope.queue),
        printable(letter.task) or "?",
        str(letter.history.count),
        printable(error_line(letter.error.error, letter.error.message)),
    ]


def headlines(rows: list[list[str]]) -> list[str]:
    """The lines of ``ls``, with its heading, in the width of the screen."""
    return columns(
        [list(HEADINGS), *rows], room(), elastic=(5, 2, 3), numbers=(1, 4), keep_end=(3,)
    )


def story(retry: ScheduledRetry, redactor: Redactor) -> Iterator[tuple[str, str]]:
    """All that is known about a scheduled retry, as blocks of text, each under a title."""
    letter, width = redactor.letter(retry.letter), screen()
    envelope = letter.envelope
    due = moment(retry.due)
    due += f" (in {span(retry.left)})" if retry.left > 0 else f" ({span(-retry.left)} overdue)"
    facts = {
        "Task": letter.task or "?",
        "Task id": letter.task_id,
        "Queue": envelope.queue,
        "Due": due,
        "Error": ": ".join(filter(None, (letter.error.error, letter.error.message))),
        "Verdict": verdict(letter),
        "Attempts": tried(letter),
        "Priority": str(envelope.properties.get("priority") or ""),
        "Body": body(envelope),
        "Replayed from": ", ".join(letter.history.lineage),
    }
    yield "", listed(facts, width)
    yield from particulars(letter, redactor, width, "waits")
