"""A dead letter as JSON, for a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.redact import Redactor
from celery_resilience.operate.dead_letters import Filed

__all__ = ["as_json", "details", "iso", "own_headers"]

#: Celery's own headers; what else there is, its sender has put there.
_CELERYS = frozenset(
    {
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
        *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        *("ignore_result", "replaced_task_nesting", "stamped_headers", "compression"),
    }
)


def as_json(filed: Filed, redactor: Redactor, *, whole: bool = False) -> dict[str, Any]:
    """What JSON output says about a letter; *whole* adds what ``show`` shows."""
    # To mask all of a letter takes its time, and ls has many.
    letter = redactor.letter(filed.letter) if whole else filed.letter
    told: dict[str, Any] = {
        "id": filed.name,
        "dead_letter_queue": filed.queue,
        "reason": letter.reason.value,
        "at": iso(letter.at),
        "task": letter.task,
        "task_id": letter.task_id,
        "queue": letter.envelope.queue,
        "attempts": letter.history.count,
        "error": letter.error.error,
        "message": letter.error.message if whole else redactor(letter.error.message),
        "kind": letter.kind,
        "rule": letter.rule if whole else redactor(letter.rule),
        "group": letter.group,
        "fingerprint": letter.fingerprint,
    }
    return {**told, **details(letter)} if whole else told


def details(letter: DeadLetter) -> dict[str, Any]:
    """What JSON output of ``show`` says about a *letter* that is fit to be shown, and ``ls`` does
    not."""
    envelope = letter.envelope
    return {
        "verdict_rule": letter.verdict_rule,
        "category": letter.category,
        "hint": letter.hint,
        "worker": letter.worker,
        "app_version": letter.app_version,
        "first": iso(letter.history.first or 0.0),
        "history": [
            {**asdict(attempt), "at": iso(attempt.at)} for attempt in letter.history.attempts
        ],
        "causes": [asdict(cause) for cause in letter.error.causes],
        "traceback": letter.error.traceback,
        "arguments": letter.arguments,
        "headers": own_headers(envelope.headers),
        "exchange": envelope.exchange,
        "routing_key": envelope.routing_key,
        "priority": envelope.properties.get("priority"),
        "losses": letter.history.losses,
        "lineage": list(letter.history.lineage),
        "body": {
            "content_type": envelope.content_type,
            "content_encoding": envelope.content_encoding,
            "compression": envelope.headers.get("compression"),
            "size": len(envelope.body),
        },
    }


def iso(at: float) -> str | None:
    """*at* for a program, in UTC; None where there is no such moment."""
    try:
        moment = datetime.fromtimestamp(at, timezone.utc) if at > 0 else None
    except (OverflowError, ValueError, OSError):
        return None
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def own_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of *headers* that are not Celery's."""
    return {k: v for k, v in headers.items() if k not in _CELERYS and v not in (None, {}, [])}
