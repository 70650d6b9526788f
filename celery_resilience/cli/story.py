"""A dead letter told to a person, and to a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from celery_resilience.cli.table import ago, columns, moment, screen, span, wrapped
from celery_resilience.deadletters import Filed
from celery_resilience.decision import Reason
from celery_resilience.envelope import Envelope
from celery_resilience.letter import DeadLetter
from celery_resilience.redact import Redactor, printable

__all__ = ["as_json", "as_row", "headlines", "story"]

#: Celery's own headers; what else there is, its sender has put there.
_CELERYS = frozenset(
    {
        *("lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries"),
        *("timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        *("ignore_result", "replaced_task_nesting", "stamped_headers", "compression"),
    }
)
_TRACEBACK_LINES = 24
#: So much of an id tells the letters of a table apart; every verb takes the beginning of an id.
_SHORT_ID = 8
_EXCERPT = 500

_MEANING = {
    Reason.PERMANENT: "no retry can help, or nobody asked for one",
    Reason.EXHAUSTED: "every retry it was allowed has failed",
    Reason.DEADLINE: "the next retry would have been too late",
    Reason.TIME_LIMIT: "it ran into its time limit",
    Reason.WORKER_LOST: "the process that ran it died",
    Reason.UNDECODABLE: "its body or its headers can't be read",
    Reason.UNREGISTERED: "the worker knows no task of that name",
    Reason.INVALID: "it can be read, but it is not a task message",
    Reason.REJECTED: "the task rejected it",
    Reason.EXPIRED: "it expired before it could succeed",
    Reason.CHAIN: "it succeeded, but what follows it could not be published",
    Reason.UNROUTABLE: "the queue it belongs to has gone",
    Reason.MANUAL: "an operator buried it",
}


# For a program


def as_json(filed: Filed, redactor: Redactor, *, whole: bool = False) -> dict[str, Any]:
    """What JSON output says about a letter; *whole* adds what ``show`` shows."""
    letter = redactor.letter(filed.letter)
    told: dict[str, Any] = {
        "id": letter.id,
        "dead_letter_queue": filed.queue,
        "reason": letter.reason.value,
        "at": _iso(letter.at),
        "task": letter.task,
        "task_id": letter.task_id,
        "queue": letter.envelope.queue,
        "attempts": letter.history.count,
        "error": letter.error.error,
        "message": letter.error.message,
        "kind": letter.kind,
        "rule": letter.rule,
        "fingerprint": letter.fingerprint,
    }
    if not whole:
        return told
    envelope = letter.envelope
    return {
        **told,
        "verdict_rule": letter.verdict_rule,
        "category": letter.category,
        "hint": letter.hint,
        "worker": letter.worker,
        "app_version": letter.app_version,
        "first": _iso(letter.history.first or 0.0),
        "history": [
            {**asdict(attempt), "at": _iso(attempt.at)} for attempt in letter.history.attempts
        ],
        "causes": [asdict(cause) for cause in letter.error.causes],
        "traceback": letter.error.traceback,
        "arguments": letter.arguments,
        "headers": _own_headers(envelope.headers),
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


def _iso(at: float) -> str | None:
    try:
        moment = datetime.fromtimestamp(at, timezone.utc) if at > 0 else None
    except (OverflowError, ValueError, OSError):
        return None
    return None if moment is None else moment.isoformat(timespec="milliseconds")


# For a person

HEADINGS = ("ID", "AGE", "TASK", "REASON", "TRIES", "ERROR")


def as_row(filed: Filed, redactor: Redactor) -> list[str]:
    """The cells of a letter's line in ``ls``."""
    letter = redactor.letter(filed.letter)
    return [
        printable(letter.id[:_SHORT_ID]),
        ago(letter.at),
        printable(letter.task) or "?",
        letter.reason.value,
        str(letter.history.count),
        printable(_error(letter.error.error, letter.error.message)),
    ]


def headlines(rows: list[list[str]]) -> list[list[str]]:
    """The lines of ``ls``, with its heading, in the width of the screen."""
    return columns([list(HEADINGS), *rows], screen(), elastic=(5, 2), numbers=(1, 4), keep_end=(2,))


def story(filed: Filed, redactor: Redactor) -> Iterator[tuple[str, str]]:
    """All that is known about a letter, as blocks of text, each under a title."""
    letter = redactor.letter(filed.letter)
    width = screen()
    yield "", _facts(letter, width)
    if letter.history.attempts:
        yield "Attempts", _attempts(letter, width)
    if letter.error.causes:
        lines = [f"{printable(c.error)}: {printable(c.message)}" for c in letter.error.causes]
        yield "Caused by", "\n".join(wrapped(line, width, "  ", "    ") for line in lines)
    arguments = printable(letter.arguments)
    if arguments:
        yield "Arguments", wrapped(arguments, width, "  ")
    else:
        excerpt = _excerpt(letter.envelope, redactor)
        if excerpt:
            yield "Body", wrapped(excerpt, width, "  ")
    headers = _own_headers(letter.envelope.headers)
    if headers:
        lines = [f"{printable(k)}: {printable(str(v))}" for k, v in headers.items()]
        yield "Headers", "\n".join(wrapped(line, width, "  ", "    ") for line in lines)
    if letter.error.traceback:
        lines = printable(letter.error.traceback, lines=True).rstrip("\n").split("\n")
        shown = lines[-_TRACEBACK_LINES:]
        title = "Traceback"
        if len(shown) < len(lines):
            title += f" (the last {len(shown)} of {len(lines)} lines; --json has all)"
        yield title, "\n".join(_source(line, width) for line in shown)


def _facts(letter: DeadLetter, width: int) -> str:
    history, envelope = letter.history, letter.envelope
    died = moment(letter.at)
    if letter.at > 0:
        died += f" ({ago(letter.at)} ago)"
    if letter.worker:
        died += f" on {letter.worker}"
    if letter.app_version:
        died += f", app {letter.app_version}"
    tried = str(history.count)
    if history.first and letter.at >= history.first:
        tried += f", the first {span(letter.at - history.first)} earlier"
    if history.losses:
        tried += f"; {history.losses} of them killed the process that ran it"
    verdict = letter.kind
    if letter.verdict_rule:
        verdict += f", by {letter.verdict_rule}"
    if letter.category:
        verdict += f" ({letter.category})"
    came_from = envelope.queue or "?"
    if envelope.exchange or envelope.routing_key not in ("", envelope.queue):
        came_from += f" (exchange {envelope.exchange!r}, routing key {envelope.routing_key!r})"
    body = f"{envelope.content_type or 'unknown type'}, {len(envelope.body)} bytes"
    if compression := envelope.headers.get("compression"):
        body += f", {compression}"
    facts = {
        "Task": letter.task or "?",
        "Task id": letter.task_id,
        "Reason": f"{letter.reason.value}: {_MEANING[letter.reason]}",
        "Error": ": ".join(filter(None, (letter.error.error, letter.error.message))),
        "Hint": letter.hint,
        "Decided by": letter.rule,
        "Verdict": verdict,
        "Died": died,
        "Attempts": tried,
        "Came from": came_from,
        "Body": body,
        "Replayed from": ", ".join(letter.history.lineage),
        "Group": letter.fingerprint,
    }
    return "\n".join(
        wrapped(f"{name:<13} {printable(fact)}", width, "  ", " " * 16)
        for name, fact in facts.items()
        if fact
    )


def _attempts(letter: DeadLetter, width: int) -> str:
    history = letter.history
    rows = [["#", "WHEN", "RAN", "ERROR", "THEN"]]
    missing = history.count - len(history.attempts)
    for n, attempt in enumerate(history.attempts):
        if missing > 0 and n == 2:
            rows.append(["…", "", "", f"{missing} more", ""])
        last = n == len(history.attempts) - 1
        then = f"again in {span(attempt.delay)}" if attempt.delay is not None else ""
        rows.append(
            [
                str(attempt.number),
                moment(attempt.at, "%m-%d %H:%M:%S"),
                span(attempt.ran),
                printable(_error(attempt.error, attempt.message)),
                then or ("dead letter" if last else ""),
            ]
        )
    laid_out = columns(rows, width - 2, elastic=(3,), numbers=(0, 2))
    return "\n".join("  " + "  ".join(row).rstrip() for row in laid_out)


def _error(error: str, message: str) -> str:
    name = error.rpartition(".")[2]
    return f"{name}: {message}" if name and message else name or message


def _excerpt(envelope: Envelope, redactor: Redactor) -> str:
    """The beginning of a body that is text; its sender has not said how its arguments look."""
    text_like = (envelope.content_type or "").startswith(("application/json", "text/"))
    if envelope.headers.get("compression") or not (text_like or envelope.content_type is None):
        return ""
    text = envelope.body[: 4 * _EXCERPT].decode("utf-8", "backslashreplace")
    shown = printable(redactor(text))
    return shown if len(shown) <= _EXCERPT else shown[: _EXCERPT - 1] + "…"


def _own_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in _CELERYS}


def _source(line: str, width: int) -> str:
    indent = "  " + " " * (len(line) - len(line.lstrip()))
    return wrapped(line.strip(), width, indent[: width // 2], indent[: width // 2] + "  ")
