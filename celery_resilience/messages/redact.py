"""Values to mask in all output, masked in every text that is shown.

A text of arguments is no longer the arguments: it is a ``repr``, cut off anywhere. So
this looks for the names of ``resilience_redact`` and masks whatever stands behind them, rather too
much than too little: where the end of a value can't be told, the rest of the text goes with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.error_record import ErrorRecord

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
_OPENING_OF = {closing: opening for opening, closing in _OPENING.items()}
#: The letters that Python writes in front of a quoted string.
_PREFIXES = frozenset("bBrRuUfF")
_QUOTE = re.compile(r"""(\\*)(['"])""")
#: How the names of credentials end, whatever stands before: ``db_password``, ``accessToken``.
_CREDENTIALS = (
    r"passwords?|passwd|passphrase|pwd|token|secrets?|(?:api|access|private|secret)[-_]?key|"
    r"authorization|credentials?|cookies?"
)
#: The password in a URL.
_IN_URL = re.compile(r"(://[^\s/:@'\"]{0,200}:)[^\s/@'\"]{1,200}(?=@)")


class Masking(Protocol):
    """What the settings say about masking."""

    @property
    def redact(self) -> Iterable[str | Callable[[str], str]]: ...
    @property
    def redact_credentials(self) -> bool: ...


class Redactor:
    """Takes the values of some names out of texts, then asks some functions.

    *redact* is the setting: names of arguments, matched whatever their case, ``-`` and ``_`` being
    the same; and functions from text to text, which come last. A function that raises, or returns
    anything but a text, leaves :data:`FAILED` of the text. With *credentials* names that end like
    a password's, a token's or a cookie's are masked too, and passwords in URLs.
    """

    def __init__(
        self, redact: Iterable[str | Callable[[str], str]] = (), *, credentials: bool = False
    ) -> None:
        items = tuple(redact)
        names = sorted({item for item in items if isinstance(item, str) and item.strip()})
        self._functions = tuple(item for item in items if not isinstance(item, str))
        self._key = self._find = None
        self._credentials = credentials
        wholes = "|".join(_pattern(name) for name in sorted(names, key=len, reverse=True))
        keys = [wholes] * bool(names) + [rf".*(?:{_CREDENTIALS})"] * credentials
        finds = [rf"(?<![A-Za-z0-9_])(?:{wholes})"] * bool(names) + [_CREDENTIALS] * credentials
        if keys:
            self._key = re.compile(rf"(?:{'|'.join(keys)})\Z", re.IGNORECASE | re.DOTALL)
            # The name, the quote that closes it if it is quoted, and what leads to its value.
            self._find = re.compile(
                rf"(?:{'|'.join(finds)})"
                r"(?:(?P<quote>\\*['\"])\s*(?:\]\s*)?(?::|=>|=(?!=)|,)|\s*(?P<bare>:|=(?!=)))\s*",
                re.IGNORECASE,
            )

    @classmethod
    def of(cls, settings: Masking) -> Redactor:
        """The one that *settings* ask for."""
        return cls(settings.redact, credentials=settings.redact_credentials)

    def __call__(self, text: str) -> str:
        """*text* with all values masked that no output shows."""
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

    def error(self, error: ErrorRecord) -> ErrorRecord:
        """The same record, fit to be shown."""
        return replace(
            error,
            message=self(error.message),
            causes=tuple(replace(cause, message=self(cause.message)) for cause in error.causes),
            traceback=self(error.traceback),
        )

    def letter(self, letter: DeadLetter) -> DeadLetter:
        """The same letter, fit to be shown. Its body is as received: do not show it."""
        history = letter.history
        return replace(
            letter,
            hint=self(letter.hint),
            rule=self(letter.rule),
            error=self.error(letter.error),
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
        masked = "".join([*parts, text[at:]])
        return _IN_URL.sub(rf"\1{MASK}", masked) if self._credentials else masked

    def _asked(self, text: str) -> str:
        for function in self._functions:
            try:
                text = function(text)
            except (Exception, SystemExit):
                return FAILED
            if not isinstance(text, str):
                return FAILED
        return text


def printable(text: str, lines: bool = False) -> str:
    """*text* with everything visible: no control characters that a terminal would obey.

    They are written as escapes. Line ends and tabs stay as they are where *lines* is true,
    elsewhere each run of white space becomes one space.
    """
    text = text.replace("\r\n", "\n").expandtabs(4) if lines else " ".join(text.split())
    return "".join(
        c if _harmless(c) or (lines and c == "\n") else c.encode("unicode_escape").decode()
        for c in text
    )


def _harmless(character: str) -> bool:
    # Cc control, Cf format (also what turns the direction of writing), Cs half a surrogate pair,
    # Zl and Zp line and paragraph ends.
    return (character.isascii() and character.isprintable()) or unicodedata.category(
        character
    ) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _pattern(name: str) -> str:
    return "[-_]".join(re.escape(part) for part in re.split("[-_]", name.strip()))


def _end_of_value(text: str, find: re.Match[str]) -> int:
    """Where the value ends that begins at the end of *find*, however the text was quoted."""
    return max(_Reader(text, nested).end_of_value(find) for nested in (2, 4, 8))


class _Reader:
    """Finds ends in a *text*, supposing how often what it holds was quoted again.

    A quote inside of a string has backslashes in front of it: one in a repr or in JSON, two in
    the repr of JSON, and so on. *nested* is the number of them that end up as one in the text
    which was quoted first, times two.
    """

    def __init__(self, text: str, nested: int) -> None:
        self.text = text
        self.nested = nested

    def end_of_value(self, find: re.Match[str]) -> int:
        start = find.end()
        string = self._opening_quote(start)
        if string is not None:
            return self._end_of_strings(string)
        if find["quote"]:
            return self._end_of_item(start)
        if find["bare"] == ":":  # a header, a line of YAML, a word in a sentence
            end = self.text.find("\n", start)
            return len(self.text) if end < 0 else end
        return self._end_of_word(start)

    def _opening_quote(self, at: int) -> re.Match[str] | None:
        """The quote that opens a string at *at*, whatever letters and backslashes precede it."""
        for _ in range(3):
            found = _QUOTE.match(self.text, at)
            if found is not None:
                return found
            if self.text[at : at + 1] not in _PREFIXES:
                return None
            at += 1
        return None

    def _end_of_strings(self, opening: re.Match[str]) -> int:
        """Where the string ends, with those that follow it as pprint writes a long one.

        What follows it has to look like an end, too: not every repr escapes quotes.
        """
        text, at = self.text, opening.end()
        while True:
            closing = _QUOTE.search(text, at)
            if closing is None:
                return len(text)
            at = closing.end()
            if not self._closes(opening, closing):
                continue
            after = at
            while after < len(text) and text[after].isspace():
                after += 1
            following = self._opening_quote(after) if after > at else None
            if following is not None:
                opening, at = following, following.end()
            elif after > at or at == len(text) or text[at] in ",:)]}'\"\\":
                return at

    def _closes(self, opening: re.Match[str], closing: re.Match[str]) -> bool:
        more = len(closing[1]) - len(opening[1])
        per_level = (len(opening[1]) + 1) * self.nested
        return closing[2] == opening[2] and more >= 0 and more % per_level == 0

    def _end_of_item(self, at: int) -> int:
        """Where an item ends that is not a string: at a comma or the bracket around it."""
        text = self.text
        open_brackets: list[str] = []
        while at < len(text):
            character = text[at]
            if character in "'\"\\":
                string = self._opening_quote(at)
                if string is not None:
                    at = self._end_of_strings(string)
                    continue
            elif not open_brackets and character in ",)]}":
                return at
            elif character in _OPENING:
                open_brackets.append(_OPENING[character])
            elif open_brackets and character == open_brackets[-1]:
                open_brackets.pop()
            at += 1
        return at

    def _end_of_word(self, at: int) -> int:
        """Where the value in ``name=value`` ends: at white space or ``&`` outside of brackets."""
        text, start = self.text, at
        while at < len(text) and not text[at].isspace() and text[at] != "&":
            at = self._end_of_brackets(at) if text[at] in _OPENING else at + 1
        while at > start and text[at - 1] in ",;)]}>'\"":
            opened = _OPENING_OF.get(text[at - 1])
            if opened is not None and opened in text[start:at]:
                break
            at -= 1
        return at

    def _end_of_brackets(self, at: int) -> int:
        """Behind the bracket that closes the one at *at*; the end of the text if none does."""
        text, closing = self.text, _OPENING[self.text[at]]
        end = self._end_of_item(at + 1)
        while end < len(text) and text[end] != closing:
            end = self._end_of_item(end + 1)
        return min(end + 1, len(text))
