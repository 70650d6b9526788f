"""Plain text for terminals: columns that fit, wrapped lines, times for a person."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Sequence

__all__ = [
    "ago",
    "columns",
    "cut",
    "many_letters",
    "moment",
    "on_terminal",
    "rendered",
    "room",
    "screen",
    "short",
    "span",
    "wrapped",
]


def on_terminal() -> bool:
    """Whether the output goes to a terminal, and not to another program."""
    return sys.stdout.isatty()


def screen() -> int:
    """The width of the terminal; 80 where it is unknown."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def room() -> int | None:
    """The columns that a table has; None: as many as it wants, for a program reads it."""
    return screen() if on_terminal() else None


def rendered(text: str) -> int:
    """How many columns *text* takes."""
    return sum(_columns(character) for character in text)


def cut(text: str, width: int, *, keep_end: bool = False) -> str:
    """*text* in at most *width* columns, with a sign where some of it is missing."""
    if rendered(text) <= width:
        return text
    if width < 1:
        return ""
    kept: list[str] = []
    used = 1
    for character in reversed(text) if keep_end else text:
        used += _columns(character)
        if used > width:
            break
        kept.append(character)
    return "…" + "".join(reversed(kept)) if keep_end else "".join(kept) + "…"


def padded(text: str, width: int, *, right: bool = False) -> str:
    """*text* with blanks to fill *width* columns."""
    blanks = " " * max(0, width - rendered(text))
    return blanks + text if right else text + blanks


def columns(
    rows: Sequence[Sequence[str]],
    width: int | None,
    *,
    elastic: Sequence[int] = (),
    numbers: Sequence[int] = (),
    keep_end: Sequence[int] = (),
) -> list[str]:
    """A line for each of *rows*: its cells, padded and cut so that they fit *width* with two blanks
    between; None: nothing is cut.

    Only *elastic* columns are cut, the last of them first; *numbers* are set to the right, and
    *keep_end* columns lose their beginning.
    """
    if not rows:
        return []
    widths = [max(rendered(row[n]) for row in rows) for n in range(len(rows[0]))]
    over = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
    for n in reversed(elastic):
        floor = min(widths[n], 18)
        taken = max(0, min(over, widths[n] - floor))
        widths[n] -= taken
        over -= taken
    if over > 0 and elastic:
        widths[elastic[-1]] = max(1, widths[elastic[-1]] - over)
    return [
        "  ".join(
            padded(cut(cell, widths[n], keep_end=n in keep_end), widths[n], right=n in numbers)
            for n, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def wrapped(text: str, width: int, indent: str = "", hanging: str | None = None) -> str:
    """*text* in lines of at most *width* columns; its own line ends stay."""
    lines = []
    for n, line in enumerate(text.split("\n")):
        lines += textwrap.wrap(
            line,
            # Wide characters take two columns: textwrap counts them as one.
            max(20, width - (rendered(line) - len(line) if len(line) < width else 0)),
            initial_indent=indent if n == 0 or hanging is None else hanging,
            subsequent_indent=indent if hanging is None else hanging,
            replace_whitespace=False,
            drop_whitespace=True,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


def span(seconds: float) -> str:
    """A time for a person: ``0.25 s``, ``3 min 4 s``, ``2 h``, ``5 d 3 h``."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 0.0005:
        return "0 s"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for name, size, next_name, next_size in _UNITS:
        if whole >= size:
            most, rest = divmod(whole, size)
            rest //= next_size
            return f"{most} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{whole} s"


def ago(at: float) -> str:
    """How long ago *at* was, in four characters: ``12s``, ``5m``, ``3h``, ``41d``."""
    return short(time.time() - at) if at > 0 else "?"


def short(seconds: float) -> str:
    """A time of at least 0 in four characters: ``12s``, ``5m``, ``3h``, ``41d``."""
    whole = max(0, int(seconds))
    for sign, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{sign}"
    return f"{whole}s"


def many_letters(number: int) -> str:
    """So many dead letters."""
    return f"{number:,} dead letter{'' if number == 1 else 's'}"


def moment(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """*at* by the local clock."""
    try:
        return time.strftime(form, time.localtime(at)) if at > 0 else "?"
    except (OverflowError, ValueError, OSError):
        return "?"


_UNITS = (
    ("d", 86400, "h", 3600),
    ("h", 3600, "min", 60),
    ("min", 60, "s", 1),
)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
