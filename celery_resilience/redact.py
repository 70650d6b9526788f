"""What no output may show, taken out of every text that is shown.

A text of arguments is no longer the arguments: it is somebody's ``repr``, cut off anywhere. So
this looks for the names of ``resilience_redact`` and masks whatever stands behind them, rather too
much than too little: where the end of a value can't be told, the rest of the text goes with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from celery_resilience.letter import DeadLetter

__all__ = ["FAILED", "MASK", "Redactor", "printable"]

#: What stands in the place of a masked value.
MASK = "***"
#: What stands in the place of a text that could not be redacted.
FAILED = "<redaction failed>"

#: A text with more finds than this is masked from the first one on: it is hostile or useless.
_FINDS = 200
#: What lies deeper than this in a value is masked.
_DEEPEST = 20
_OPENING = {"(": ")", "[": "]", "{": "}", "<": ">"}
_CLOSING = frozenset(_OPENING.values())
#: The letters that Python writes in front of a quoted string.
_PREFIXES = frozenset("bBrRuUfF")
_QUOTE = re.compile(r"""(\\*)(['"])""")


class Redactor:
    """Takes the values of some names out of texts, then asks some functions.

    *redact* is the setting: names of arguments, matched whatever their case, ``-`` and ``_`` being
    the same; and functions from text to text, which come last. A function that raises, or returns
    anything but a text, leaves :data:`FAILED` of the text.
    """

    def __init__(self, redact: Iterable[str | Callable[[str], str]] = ()) -> None:
        items = tuple(redact)
        names = sorted({item for item in items if isinstance(item, str) and item.strip()})
        self._functions = tuple(item for item in items if not isinstance(item, str))
        self._key = self._find = None
        if names:
            any_name = "|".join(_pattern(name) for name in sorted(names, key=len, reverse=True))
            self._key = re.compile(rf"(?:{any_name})\Z", re.IGNORECASE)
            # The name, the quote that closes it if it is quoted, and what leads to its value.
            self._find = re.compile(
                rf"(?<![A-Za-z0-9_])(?:{any_name})"
                r"(?:(?P<quote>\\*['\"])\s*(?:\]\s*)?(?::|=>|=(?!=)|,)|\s*(?P<bare>:|=(?!=)))\s*",
                re.IGNORECASE,
            )

    def __call__(self, text: str) -> str:
        """*text* without what no output may show."""
        return self._asked(self._masked(text))

    def value(self, value: Any, depth: int = 0) -> Any:
        """The same for what JSON can hold: what stands under one of the names is masked."""
        if depth > _DEEPEST:
            return MASK
        if isinstance(value, str):
            return self(value)
        if isinstance(value, bytes):
            return self(value.decode("utf-8", "backslashreplace"))
        if isinstance(value, Mapping):
            return {
                self(str(k)): MASK if self._names(k) else self.value(v, depth + 1)
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            if len(value) == 2 and self._names(value[0]):  # a header, as many libraries keep it
                return [value[0], MASK]
            return [self.value(item, depth + 1) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self(str(value))

    def letter(self, letter: DeadLetter) -> DeadLetter:
        """The same letter, fit to be shown. Its body is as received: do not show it."""
        error, history = letter.error, letter.history
        return replace(
            letter,
            hint=self(letter.hint),
            rule=self(letter.rule),
            error=replace(
                error,
                message=self(error.message),
                causes=tuple(replace(c, message=self(c.message)) for c in error.causes),
                traceback=self(error.traceback),
            ),
            history=replace(
                history,
                attempts=tuple(replace(a, message=self(a.message)) for a in history.attempts),
            ),
            envelope=replace(letter.envelope, headers=self.value(letter.envelope.headers)),
        )

    def _names(self, key: object) -> bool:
        return self._key is not None and isinstance(key, str) and bool(self._key.match(key))

    def _masked(self, text: str) -> str:
        if self._find is None:
            return text
        spans: list[tuple[int, int]] = []
        for find in self._find.finditer(text):
            if len(spans) == _FINDS:
                spans[-1] = (spans[-1][0], len(text))
                break
            end = _end_of_value(text, find)
            if spans and find.end() <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], end))
            else:
                spans.append((find.end(), end))
        parts, at = [], 0
        for start, end in spans:
            parts += [text[at:start], MASK]
            at = end
        return "".join([*parts, text[at:]])

    def _asked(self, text: str) -> str:
        for function in self._functions:
            try:
                text = function(text)
            except Exception:
                return FAILED
            if not isinstance(text, str):
                return FAILED
        return text


def printable(text: str, lines: bool = False) -> str:
    """*text* with everything visible: no control characters that a terminal would obey.

    They are written as escapes. Line ends and tabs stay as they are where *lines* is true,
    elsewhere each run of white space becomes one space.
    """
    if lines:
        text = text.replace("\r\n", "\n").expandtabs(4)
    else:
        text = " ".join(text.split())
    return "".join(c if _harmless(c) or (lines and c == "\n") else _escaped(c) for c in text)


def _harmless(character: str) -> bool:
    # Cc control, Cf format (also what turns the direction of writing), Cs half a surrogate pair,
    # Zl and Zp line and paragraph ends.
    return (character.isascii() and character.isprintable()) or unicodedata.category(
        character
    ) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _pattern(name: str) -> str:
    return "[-_]".join(re.escape(part) for part in re.split("[-_]", name.strip()))


def _end_of_value(text: str, find: re.Match[str]) -> int:
    """Where the value ends that begins at the end of *find*."""
    start = find.end()
    string = _opening_quote(text, start)
    if string is not None:
        return _end_of_strings(text, string)
    if find["quote"]:
        return _end_of_item(text, start)
    if find["bare"] == ":":  # a header, a line of YAML, a word in a sentence
        end = text.find("\n", start)
        return len(text) if end < 0 else end
    return _end_of_word(text, start)


def _opening_quote(text: str, at: int) -> re.Match[str] | None:
    """The quote that opens a string at *at*, whatever letters and backslashes come before it."""
    for _ in range(3):
        found = _QUOTE.match(text, at)
        if found is not None:
            return found
        if text[at : at + 1] not in _PREFIXES:
            return None
        at += 1
    return None


def _end_of_strings(text: str, opening: re.Match[str]) -> int:
    """Where the string ends, with those that follow it as pprint writes a long one.

    A quote inside of it has more backslashes in front of it than the one that opens it. Some that
    have as many as an ending one are inside of it all the same (JSON in a repr): so what follows
    has to look like an end, too.
    """
    at = opening.end()
    while True:
        closing = _QUOTE.search(text, at)
        if closing is None:
            return len(text)
        at = closing.end()
        if closing.groups() != opening.groups():
            continue
        after = _behind_space(text, at)
        following = _opening_quote(text, after) if after > at else None
        if following is not None:
            opening, at = following, following.end()
        elif after > at or at == len(text) or text[at] in ",;:.!?)]}>&'\"\\":
            return at


def _behind_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _end_of_item(text: str, at: int) -> int:
    """Where an item of a mapping ends that is not a string: at the comma or the closing bracket."""
    open_brackets: list[str] = []
    while at < len(text):
        character = text[at]
        if character in "'\"\\":
            string = _opening_quote(text, at)
            if string is not None:
                at = _end_of_strings(text, string)
                continue
        elif not open_brackets and character in ",)]}":
            return at
        elif character in _OPENING:
            open_brackets.append(_OPENING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        at += 1
    return at


def _end_of_word(text: str, at: int) -> int:
    """Where the value in ``name=value`` ends: at white space or ``&`` outside of brackets."""
    start = at
    while at < len(text) and not text[at].isspace() and text[at] != "&":
        if text[at] in _OPENING:
            closing = _end_of_brackets(text, at)
            if closing is None:
                return len(text)
            at = closing
        else:
            at += 1
    while at > start and text[at - 1] in ",;)]}>'\"":
        if text[at - 1] in _CLOSING and _OPENING_OF[text[at - 1]] in text[start:at]:
            break
        at -= 1
    return at


_OPENING_OF = {closing: opening for opening, closing in _OPENING.items()}


def _end_of_brackets(text: str, at: int) -> int | None:
    """Behind the bracket that closes the one at *at*; None if none does."""
    end = _end_of_item(text, at + 1)
    while end < len(text) and text[end] != _OPENING[text[at]]:
        end = _end_of_item(text, end + 1)
    return end + 1 if end < len(text) else None
