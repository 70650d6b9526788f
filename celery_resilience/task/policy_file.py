"""The operator's policies: a TOML file that a worker reads when it starts.

::

    [policies.remote-call]              # any argument of Policy
    max_retries = 8
    backoff = 2
    max_elapsed = "unlimited"           # TOML has no word for None

    [[policies.remote-call.rules]]      # the first that matches decides
    on = ["requests.exceptions.Timeout", "ConnectionError"]
    action = "retry"                    # or "dead_letter", "discard"
    max_retries = 20

    [tasks]                             # names or patterns; the first that matches decides
    "shop.charge" = "remote-call"
    "*remote*" = "remote-call"

Whatever is wrong is refused with the file's name and the line.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from celery.exceptions import ImproperlyConfigured

from celery_resilience.classify import exception_named
from celery_resilience.errors import did_you_mean
from celery_resilience.policy.policy import Policy
from celery_resilience.policy.rules import Match, Rule, Treatment, check_rule, on

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["PolicyFile", "line_of", "load"]

T = TypeVar("T")
#: Where something stands in the document: keys, and numbers of items counted from 0.
Where = tuple["str | int", ...]

_POLICY_KEYS = tuple(f.name for f in fields(Policy) if f.name != "name")
_UNLIMITED = "unlimited"
_MAY_BE_UNLIMITED = ("max_retries", "max_elapsed")


@dataclass(frozen=True)
class PolicyFile:
    """What such a file says; the empty one says nothing."""

    path: str = ""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    #: Patterns of task names, each with the name of its policy, in the file's order.
    tasks: Mapping[str, str] = field(default_factory=dict)
    text: str = field(default="", repr=False)

    def place(self, *where: str | int) -> str:
        """``ops.toml, line 12``: where in the file that stands."""
        return f"{self.path}, line {line_of(self.text, where)}"


def load(path: str, shared: Mapping[str, Policy] | None = None) -> PolicyFile:
    """Read the file at *path*; its ``[tasks]`` may name *shared* policies besides its own.

    Raises ImproperlyConfigured with the line, what is wrong with it and what is meant.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ImproperlyConfigured(f"the file of policies {path} can't be read: {exc}") from exc
    return _Reader(path, text).read({} if shared is None else shared)


def line_of(text: str, where: Where) -> int:
    """The line, from 1, on which the statement begins that says what is *where* in *text*.

    The TOML parser does not tell. But the beginning of a document, up to the end of a statement,
    is a document too: the first that holds it ends with the statement wanted.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    begins = 1
    for number in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:number]) + "\n")
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a text or an array of several lines
        if _holds(data, where):
            return begins
        begins = number + 1
    return line_of(text, where[:-1])  # it is missing: where it should stand


def _holds(data: Any, where: Where) -> bool:
    for key in where:
        if isinstance(key, str):
            if not isinstance(data, Mapping) or key not in data:
                return False
        elif not isinstance(data, list) or key >= len(data):
            return False
        data = data[key]
    return True


class _Reader:
    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text

    def read(self, shared: Mapping[str, Policy]) -> PolicyFile:
        try:
            document = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as exc:
            self._refuse_syntax(exc)
        self._check_keys((), document, ("policies", "tasks"))
        policies = {
            name: self._policy(name, table)
            for name, table in self._table(("policies",), document.get("policies", {})).items()
        }
        tasks = self._table(("tasks",), document.get("tasks", {}))
        known = {**shared, **policies}
        for pattern, name in tasks.items():
            if not isinstance(name, str):
                self._refuse(("tasks", pattern), f"takes the name of a policy, got {name!r}")
            if name not in known:
                self._refuse(
                    ("tasks", pattern), f"there is no policy {name!r}{did_you_mean(name, known)}"
                )
        return PolicyFile(self.path, policies, tasks, self.text)

    def _policy(self, name: str, table: Any) -> Policy:
        where = ("policies", name)
        given = dict(self._table(where, table))
        self._check_keys(where, given, _POLICY_KEYS)
        listed = given.pop("rules", [])
        if not isinstance(listed, list):
            self._refuse(
                (*where, "rules"), f"are tables, one [[policies.{name}.rules]] each, got {listed!r}"
            )
        given = _without_unlimited(given)
        policy = self._made(where, given, lambda **some: Policy(**some)).replace(name=name)
        rules: list[Rule] = []
        for number, item in enumerate(listed):
            rules.append(self._rule((*where, "rules", number), item, policy))
            try:
                policy.replace(rules=tuple(rules))
            except (TypeError, ValueError) as exc:
                self._refuse((*where, "rules", number), str(exc).removeprefix(f"policy {name!r}: "))
        return policy.replace(rules=tuple(rules))

    def _rule(self, where: Where, item: Any, policy: Policy) -> Rule:
        given = dict(self._table(where, item))
        for wanted in ("on", "action"):
            if wanted not in given:
                self._check_keys(where, given, ("on", "action", *_TERMS["retry"], "queue", "why"))
                self._refuse(where, f"lacks {wanted!r}: {_EXAMPLE[wanted]}")
        action = given.pop("action")
        if not isinstance(action, str) or action not in _TERMS:
            self._refuse(
                (*where, "action"),
                f"takes {' or '.join(map(repr, _TERMS))}, got {action!r}"
                f"{did_you_mean(action, _TERMS)}",
            )
        match = on(*self._exceptions((*where, "on"), given.pop("on")))
        try:
            check_rule(match.retry())
        except TypeError as exc:
            self._refuse((*where, "on"), str(exc))
        self._check_keys(where, given, _TERMS[action], f"a rule that says action = {action!r}")

        def make(**some: Any) -> Rule:
            rule: Rule = getattr(match, action)(**some)
            check_rule(rule)
            policy.terms(rule)
            return rule

        return self._made(where, _without_unlimited(given), make)

    def _exceptions(self, where: Where, value: Any) -> list[type[BaseException]]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            self._refuse(where, f"takes the names of exceptions, got {value!r}")
        classes = []
        for name in names:
            if not isinstance(name, str):
                self._refuse(where, f"takes the names of exceptions, got {name!r}")
            try:
                cls = exception_named(name)
            except ValueError as exc:
                self._refuse(where, str(exc))
            if cls is None and "." not in name:
                self._refuse(
                    where,
                    f"Python has no exception {name!r}{did_you_mean(name, _BUILTIN)}; one of a "
                    "library takes its full dotted name, as in requests.exceptions.Timeout",
                )
            if cls is None:
                module = name.rpartition(".")[0]
                self._refuse(
                    where,
                    f"{name!r} can't be imported: there is no module {module!r} where this worker "
                    "runs; check the spelling, or install the library",
                )
            classes.append(cls)
        return classes

    # What is refused, and how

    def _table(self, where: Where, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._refuse(where, f"is a table, got {value!r}")
        return value

    def _check_keys(
        self, where: Where, table: Mapping[str, Any], known: tuple[str, ...], what: str = ""
    ) -> None:
        for key in table:
            if key not in known:
                whose = f"{what} takes no" if what else "there is no"
                listed = f"; known are {', '.join(known)}"
                self._refuse(
                    (*where, key),
                    f"{whose} key {key!r}{did_you_mean(key, known) or listed}",
                    of=where,
                )

    def _made(self, where: Where, given: dict[str, Any], make: Callable[..., T]) -> T:
        try:
            return make(**given)
        except (TypeError, ValueError) as exc:
            for key in given:
                if _complaint(make, {key: given[key]}) == str(exc):
                    where = (*where, key)
                    break
            self._refuse(where, str(exc).removeprefix("policy: "))

    def _refuse(self, where: Where, problem: str, of: Where | None = None) -> NoReturn:
        line = line_of(self.text, where)
        raise ImproperlyConfigured(
            f"{self.path}, line {line}: {_shown(where if of is None else of)}{problem}"
        ) from None

    def _refuse_syntax(self, exc: Exception) -> NoReturn:
        told = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(exc))
        problem = told[1] if told else str(exc)
        line = told[2] if told and told[2] else self.text.count("\n") + 1
        raise ImproperlyConfigured(
            f"{self.path}, line {line}: this is no TOML: {problem}"
        ) from None


#: What a rule of each action takes besides.
_TERMS: dict[str, tuple[str, ...]] = {
    action.value: tuple(
        name for name in signature(getattr(Match, action.value)).parameters if name != "self"
    )
    for action in Treatment
}
_EXAMPLE = {
    "on": 'write on = ["ConnectionError"]',
    "action": 'write action = "retry", or "dead_letter", or "discard"',
}
_BUILTIN = [
    name
    for name, thing in vars(builtins).items()
    if isinstance(thing, type) and issubclass(thing, BaseException)
]


def _without_unlimited(given: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if key in _MAY_BE_UNLIMITED and value == _UNLIMITED else value
        for key, value in given.items()
    }


def _complaint(make: Callable[..., object], given: dict[str, Any]) -> str | None:
    try:
        make(**given)
    except (TypeError, ValueError) as exc:
        return str(exc)
    return None


def _shown(where: Where) -> str:
    """``policies.remote-call.rules[2].action: ``, items counted from 1 as people do."""
    text = "".join(f"[{key + 1}]" if isinstance(key, int) else f".{key}" for key in where)
    return f"{text[1:]}: " if text else ""
