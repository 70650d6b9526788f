"""A dead letter as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from celery_resilience.cli.letter_json import own_headers
from celery_resilience.cli.text import (
    ago,
    columns,
    moment,
    on_terminal,
    room,
    screen,
    span,
    wrapped,
)
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.redact import Redactor, printable
from celery_resilience.operate.dead_letters import Filed
from celery_resilience.policy.decision import Reason

__all__ = [
    "as_row",
    "body",
    "error_line",
    "headlines",
    "listed",
    "particulars",
    "story",
    "tried",
    "verdict",
]

_TRACEBACK_LINES = 24
_EXCERPT = 500

_MEANING = {
    Reason.PERMANENT: "no retry can help, or none was asked for",
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


HEADINGS = ("ID", "AGE", "TASK", "REASON", "ATTEMPTS", "ERROR")


def as_row(filed: Filed, redactor: Redactor) -> list[str]:
    """The cells of a letter's line in ``ls``."""
    letter = filed.letter
    return [
        printable(filed.name),
        ago(letter.at),
        printable(letter.task) or "?",
        letter.reason.value,
        str(letter.history.count),
        printable(error_line(letter.error.error, redactor(letter.error.message))),
    ]


def headlines(rows: list[list[str]]) -> list[str]:
    """The lines of ``ls``, with its heading, in the width of the screen."""
    return columns([list(HEADINGS), *rows], room(), elastic=(5, 2), numbers=(1, 4), keep_end=(2,))


def story(filed: Filed, redactor: Redactor) -> Iterator[tuple[str, str]]:
    """All that is known about a letter, as blocks of text, each under a title."""
    letter = redactor.letter(filed.letter)
    width = screen()
    yield "", _facts(letter, width)
    yield from particulars(letter, redactor, width, "dead letter")


def particulars(
    letter: DeadLetter, redactor: Redactor, width: int, end: str
) -> Iterator[tuple[str, str]]:
    """What a *letter* that is fit to be shown brings with it; *end* is where its attempts led."""
    if letter.history.attempts:
        yield "Attempts", _attempts(letter, width, end)
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
    headers = own_headers(letter.envelope.headers)
    if headers:
        lines = [f"{printable(k)}: {printable(str(v))}" for k, v in headers.items()]
        yield "Headers", "\n".join(wrapped(line, width, "  ", "    ") for line in lines)
    if letter.error.traceback:
        lines = printable(letter.error.traceback, lines=True).rstrip("\n").split("\n")
        shown = lines[-_TRACEBACK_LINES:] if on_terminal() else lines
        title = "Traceback"
        if len(shown) < len(lines):
            title += f" (the last {len(shown)} of {len(lines)} lines; --json has all)"
        yield title, "\n".join(_source(line, width) for line in shown)


def _facts(letter: DeadLetter, width: int) -> str:
    envelope = letter.envelope
    died = moment(letter.at)
    if letter.at > 0:
        died += f" ({ago(letter.at)} ago)"
    if letter.worker:
        died += f" on {letter.worker}"
    if letter.app_version:
        died += f", app {letter.app_version}"
    came_from = envelope.queue or "?"
    if envelope.exchange or envelope.routing_key not in ("", envelope.queue):
        came_from += f" (exchange {envelope.exchange!r}, routing key {envelope.routing_key!r})"
    facts = {
        "Task": letter.task or "?",
        "Task id": letter.task_id,
        "Reason": f"{letter.reason.value}: {_MEANING[letter.reason]}",
        "Error": ": ".join(filter(None, (letter.error.error, letter.error.message))),
        "Hint": letter.hint,
        "Decided by": letter.rule,
        "Verdict": verdict(letter),
        "Died": died,
        "Attempts": tried(letter),
        "Came from": came_from,
        "Body": body(letter.envelope),
        "Replayed from": ", ".join(letter.history.lineage),
        "Group": f"{letter.group[:8]}; {letter.fingerprint[:8]} for this task alone",
    }
    return listed(facts, width)


def listed(facts: Mapping[str, str], width: int) -> str:
    """The *facts* that there are, a line for each."""
    return "\n".join(
        wrapped(f"{name:<13} {printable(fact)}", width, "  ", " " * 16)
        for name, fact in facts.items()
        if fact
    )


def tried(letter: DeadLetter) -> str:
    """How often it was tried, and what came of that."""
    history = letter.history
    said = str(history.count)
    if history.first and letter.at >= history.first:
        said += f", the first {span(letter.at - history.first)} earlier"
    if history.losses:
        said += f"; {history.losses} of them killed the process that ran it"
    return said


def verdict(letter: DeadLetter) -> str:
    """What the classifier found, and by which rule."""
    said = letter.kind
    if letter.verdict_rule:
        said += f", by {letter.verdict_rule}"
    if letter.category:
        said += f" ({letter.category})"
    return said


def body(envelope: Envelope) -> str:
    """The body's type and size."""
    said = f"{envelope.content_type or 'unknown type'}, {len(envelope.body)} bytes"
    if compression := envelope.headers.get("compression"):
        said += f", {compression}"
    return said


def _attempts(letter: DeadLetter, width: int, end: str) -> str:
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
                printable(error_line(attempt.error, attempt.message)),
                then or (end if last else ""),
            ]
        )
    room_left = width - 2 if on_terminal() else None
    return "\n".join("  " + line for line in columns(rows, room_left, elastic=(3,), numbers=(0, 2)))


def error_line(error: str, message: str) -> str:
    """``Name: what it said``."""
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


def _source(line: str, width: int) -> str:
    indent = "  " + " " * (len(line) - len(line.lstrip()))
    return wrapped(line.strip(), width, indent[: width // 2], indent[: width // 2] + "  ")
