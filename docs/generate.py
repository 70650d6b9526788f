"""Write the generated parts of this folder: ``python docs/generate.py``.

What stands between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in a page is made here, from
the code; the words around it are written by hand. ``--check`` writes nothing and exits with 1 if
a page is not what it would write.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click

import celery_resilience
from celery_resilience import Kind, Reason
from celery_resilience.brokers.rabbitmq.delay import LEVELS, QUORUM, UNROUTABLE
from celery_resilience.brokers.redis.leases import LEASE, RENEW
from celery_resilience.brokers.redis.rights import acl
from celery_resilience.brokers.redis.scripts import KEYS
from celery_resilience.classify import Row, table
from celery_resilience.classify.retry_after import DIALECTS
from celery_resilience.cli.dlq import dlq
from celery_resilience.cli.resilience import resilience
from celery_resilience.cli.retries import retries
from celery_resilience.messages.headers import ASTRAY, DELAY, DUE
from celery_resilience.settings import PREFIX, Settings
from celery_resilience.worker.flags import _flags

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from deadlines import DEADLINES  # noqa: E402

PAGES = (
    "README.md",
    "classification.md",
    "commands.md",
    "settings.md",
    "decided-where.md",
    "keys-and-queues.md",
    "security.md",
    "upgrading.md",
    "what-happens-when.md",
)

#: The commands that come with ``celery -A app``.
_GROUPS: dict[str, Any] = {"dlq": dlq, "retries": retries, "resilience": resilience}
_NO_CONTEXT = click.Context(click.Command("none"))

_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    stale = []
    for name in PAGES:
        page = DOCS / name
        text = page.read_text(encoding="utf-8")
        if text != (made := generated(text)):
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(made, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"not up to date: {', '.join(stale)}; run python docs/generate.py")


def generated(text: str) -> str:
    """*text*, a page, with its generated parts written again."""
    return _BLOCK.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n\n{part[3]}", text)


# Rights


def rights() -> str:
    """The rules of an access list, as few lines as fit."""
    words = textwrap.wrap(
        " ".join(acl(["shop", "dead_letter"])), 86, break_long_words=False, break_on_hyphens=False
    )
    lines = " \\\n  ".join(words)
    return f"```text\nACL SETUSER shop on >secret \\\n  {lines}\n```"


# Names in the broker

#: Every key of ours in Redis: its type, and what it holds.
_KEYS = {
    "waiting": ("sorted set", "each LIST that has scheduled retries, by the earliest due time"),
    "waiting:LIST": (
        "sorted set",
        "the scheduled retries of LIST, by due time: seconds since the epoch by the server's clock",
    ),
    "workers": (
        "sorted set",
        f"workers, by the time when their lease expires: {LEASE:g} s, renewed every {RENEW:g} s",
    ),
    "held:WORKER": (
        "hash",
        "the messages that the worker holds: delivery tag to LIST, a line end, and the message",
    ),
    "dead_letter_queues": ("set", "the queues that letters were ever written to"),
    "takes": (
        "hash",
        "how often each worker has fetched messages: a worker sees by it that Redis has forgotten "
        "some; below 0: other workers have declared it dead",
    ),
    "dead": (
        "sorted set",
        "workers that others have declared dead, by that time; they are removed after a day",
    ),
    "written:TAG": (
        "string, for 5 minutes",
        "the copy of a message that Redis does not hold was written, and is not written again",
    ),
    "turn": ("string", "the worker that wakes for every due time"),
}


def keys() -> str:
    """The keys of ours, which have to be those that the code names."""
    package = Path(celery_resilience.__file__).parent
    code = "".join(p.read_text(encoding="utf-8") for p in package.rglob("*.py"))
    used = set(re.findall(r"\{KEYS\}([a-z_]+)", code)) - {"none"}  # that stands for no key
    assert used == {key.partition(":")[0] for key in _KEYS}, f"keys in the code: {sorted(used)}"
    return _table(
        ["key", "type", "holds"],
        ([f"`{KEYS}{key}`", kind, holds] for key, (kind, holds) in _KEYS.items()),
    )


def exchanges() -> str:
    quorum = ", ".join(f"`{name}: {value}`" for name, value in QUORUM.items())
    level = (
        "`x-message-ttl`: 1000 · 2<sup>n</sup>, `x-dead-letter-exchange`: the level below, at "
        f"last `{DUE}`, {quorum}"
    )
    gone = "if the work queue does not exist any more"
    return _table(
        ["name", "what", "arguments"],
        [
            [f"`{DELAY}<n>`", "level *n*, a queue: keeps each message for 2<sup>n</sup> seconds; "
             f"*n* is 0 to {LEVELS - 1}", level],
            [f"`{DELAY}<n>`", "a topic exchange of the same name: into that queue, or past it", ""],
            [f"`{DELAY}p<priority>.<n>`", "both for messages that have a priority above 0; "
             "10 stands for all above it too", "the same"],
            [f"`{DUE}`", "a topic exchange: into the work queue",
             f"`alternate-exchange: {UNROUTABLE}`"],
            [f"`{UNROUTABLE}`", f"a topic exchange: into the dead-letter queue, {gone}", ""],
            ["`celery_resilience.letters.<dead-letter queue>`",
             "a fanout exchange: into that queue too, from the one before",
             f"`alternate-exchange: {ASTRAY}`"],
            [f"`{ASTRAY}`", "a fanout exchange and a queue: the last place, if the dead-letter "
             "queue does not exist any more either; inspect it with "
             f"`dlq ls --dead-letter-queue {ASTRAY}`", ""],
            ["`celery_resilience.looks.<queue>`", "a queue that exists while a command reads that "
             "queue, without messages", "`x-queue-type: classic`, deletes itself"],
        ],
    )  # fmt: skip


# The classifier's tables


def classification() -> str:
    parts = []
    for (family, reads), rows in itertools.groupby(table(), lambda row: (row.family, row.reads)):
        parts.append(f"### {family}\n\nReads {reads}.\n\n{_verdicts(list(rows))}")
    return "\n\n".join(parts)


def _verdicts(rows: list[Row]) -> str:
    merged: dict[tuple[object, ...], list[str]] = {}
    for row in rows:
        merged.setdefault((row.what, row.kind, row.max_retries, row.hint), []).append(row.key)
    return _table(
        ["by", "which", "verdict", "hint"],
        (
            [
                str(what),
                ", ".join(f"`{key}`" for key in keys),
                str(kind) + ("" if most is None else f", {_retries(most)} at most"),
                str(hint),
            ]
            for (what, kind, most, hint), keys in merged.items()
        ),
    )


def _retries(number: Any) -> str:
    return f"{number} {'retry' if number == 1 else 'retries'}"


def dialects() -> str:
    return _table(
        ["header", "how it is written", "believed for"],
        ([f"`{name}`", written, believed] for name, written, believed in DIALECTS),
    )


# Settings and flags


def settings() -> str:
    said = _comments(Settings)
    flags = {setting: flag for flag, setting, _, _ in _told_flags()}
    return _table(
        ["setting", "type", "default", "flag", "meaning"],
        (
            [
                f"`{PREFIX}{field.name}`",
                _type(str(field.type)),
                f"`{_default(field)!r}`",
                f"`{flags[PREFIX + field.name]}`" if PREFIX + field.name in flags else "",
                said[field.name],
            ]
            for field in fields(Settings)
        ),
    )


def flags() -> str:
    return _table(
        ["flag", "environment variable", "setting", "meaning"],
        (
            [f"`{flag}`", f"`{variable}`", f"`{setting}`", text]
            for flag, setting, variable, text in _told_flags()
        ),
    )


def _told_flags() -> Iterator[tuple[str, str, str, str]]:
    for option in _flags():
        flag = option.opts[0]
        text, _, setting = option.help.partition(" [setting: ")
        metavar = "" if option.is_flag else f" {option.metavar}"
        variable = "CELERY_WORKER_" + flag[2:].replace("-", "_").upper()
        yield f"{flag}{metavar}", setting.rstrip("]"), variable, text


def _type(annotation: str) -> str:
    known = {
        "str": "text",
        "int": "whole number",
        "bool": "True or False",
        "str | None": "text or None",
        "str | Sequence[str]": "text or a list of names",
        "Mapping[str, Any]": "dict",
        "Mapping[str, Policy]": "dict: name to policy",
        "Mapping[str, Policy | str]": "dict: pattern to policy, or its name",
        "Redaction": "tuple of names and functions",
    }
    return known[annotation]


def _default(field: Any) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


# Commands


def commands() -> str:
    """Every command of ours, as ``--help`` tells it."""
    return "\n\n".join(_group(name, group) for name, group in _GROUPS.items())


def _group(name: str, group: Any) -> str:
    verbs = {f"celery {name} {verb}": command for verb, command in group.commands.items()}
    uses = Counter(_option(p) for c in verbs.values() for p in c.params if _is_option(p))
    shared = [option for option, times in uses.items() if times > 2]
    parts = [f"## celery {name}", inspect.cleandoc(group.help)]
    for verb, command in verbs.items():
        arguments = [p.make_metavar(_NO_CONTEXT) for p in command.params if not _is_option(p)]
        options = [_option(p) for p in command.params if _is_option(p)]
        parts += [f"### {' '.join([verb, *arguments])}", inspect.cleandoc(command.help)]
        if own := [option for option in options if option not in shared]:
            parts.append(_table(["option", "meaning"], own))
        if also := [option[0] for option in options if option in shared]:
            parts.append(f"Also: {', '.join(also)}.")
    if shared:
        parts += [f"### Options of most verbs of `celery {name}`"]
        parts.append(_table(["option", "meaning"], shared))
    return "\n\n".join(parts)


def _is_option(param: Any) -> bool:
    return bool(param.param_type_name == "option")


def _option(param: Any) -> tuple[str, str]:
    words = ", ".join([*param.opts, *param.secondary_opts])
    metavar = "" if getattr(param, "is_flag", False) else f" {param.make_metavar(_NO_CONTEXT)}"
    return f"`{words}{metavar}`", getattr(param, "help", None) or ""


# Closed sets


def reasons() -> str:
    return _enum(Reason, "reason")


def kinds() -> str:
    return _enum(Kind, "verdict")


def _enum(cls: type[Enum], heading: str) -> str:
    source = inspect.getsource(cls)
    meant = dict(re.findall(r'^ {4}[A-Z_]+ = "(\w+)" +#: (.*)$', source, re.MULTILINE))
    return _table([heading, "meaning"], ([f"`{m.value}`", _code(meant[m.value])] for m in cls))


def moved() -> str:
    here = celery_resilience.__name__
    return _table(
        ["0.1.0", "now"],
        (
            [f"`{here}.{old}`", f"`{here}.{new}`"]
            for old, new in sorted(celery_resilience._MOVED.items())
        ),
    )


def names() -> str:
    return _table(
        ["name", "what it is"],
        ([f"`{name}`", _first_sentence(name)] for name in celery_resilience.__all__),
    )


def _first_sentence(name: str) -> str:
    if name == "Decision":
        return "`RetryLater`, `GiveUp` or `Drop`: what a policy answers with."
    paragraph = (inspect.getdoc(getattr(celery_resilience, name)) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    return _code(re.split(r"(?<=\.) (?=[A-Z])", text)[0]).rstrip(":")


# Pieces


def _comments(cls: type) -> dict[str, str]:
    """What the ``#:`` lines above each field of *cls* say."""
    found: dict[str, str] = {}
    lines: list[str] = []
    sources = (inspect.getsource(base) for base in reversed(cls.__mro__) if is_dataclass(base))
    for line in "\n".join(sources).splitlines():
        if match := re.match(r" {4}#: (.*)", line):
            lines.append(match[1])
        elif match := re.match(r" {4}(\w+):", line):
            found[match[1]] = _code(" ".join(lines))
            lines = []
        elif line.strip():
            lines = []
    return found


def _code(text: str) -> str:
    return text.replace("``", "`")


def _table(headings: list[str], rows: Iterator[list[str]] | Any) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def deadlines() -> str:
    lines = ["| what is waited for | for how long | then | what changes it |", "|---|---|---|---|"]
    for each in DEADLINES:
        seconds = "Celery's own" if each.seconds is None else f"{each.seconds:g} s"
        lines.append(f"| {each.what} | {seconds} | {each.past} | {each.option} |")
    return "\n".join(lines)


PARTS = {
    "classification": classification,
    "commands": commands,
    "deadlines": deadlines,
    "dialects": dialects,
    "exchanges": exchanges,
    "flags": flags,
    "keys": keys,
    "kinds": kinds,
    "moved": moved,
    "names": names,
    "reasons": reasons,
    "rights": rights,
    "settings": settings,
}

if __name__ == "__main__":
    main()
