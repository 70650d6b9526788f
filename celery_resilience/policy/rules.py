"""One line of a policy: which exceptions, and what they deserve.

::

    on(CardDeclined).dead_letter()
    on(OrderCancelled).discard()
    on(HTTPError, when=is_maintenance).retry(delay=900, counted=False)
    on(Timeout, ConnectionError).retry(max_retries=8, backoff=2)

What a rule says is checked by the `Policy` that takes it, which knows the rule's number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import Enum
from typing import Any, TypeAlias

from celery_resilience.errors import (
    Discard,
    PermanentError,
    ResilienceError,
    Snooze,
    TransientError,
)
from celery_resilience.policy.backoff import Jitter, Shape

__all__ = ["INHERIT", "Inherit", "Match", "Rule", "Treatment", "on"]


class Treatment(str, Enum):
    """What a rule does with the exceptions it matches."""

    RETRY = "retry"  #: run it again, under the rule's limits
    DEAD_LETTER = "dead_letter"  #: no retry: make it a dead letter now
    DISCARD = "discard"  #: neither a retry nor a dead letter: ack it, and count it


class Inherit(Enum):
    """Stands for "not given", because None and 0 are given."""

    INHERIT = "inherit"  #: as the policy says

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT = Inherit.INHERIT

#: The delay itself, or a function that takes the exception and returns it.
Delay: TypeAlias = float | timedelta | Callable[[Any], float | timedelta]

#: What our own exceptions ask for; None is what no rule's treatment can express.
_OWN_WORD: tuple[tuple[type[BaseException], Treatment | None], ...] = (
    (Snooze, None),
    (Discard, Treatment.DISCARD),
    (PermanentError, Treatment.DEAD_LETTER),
    (TransientError, Treatment.RETRY),
)

_CONTROL_FLOW = (SystemExit, KeyboardInterrupt, GeneratorExit)
# By name: this floor does not import Celery.
_CELERY_CONTROL_FLOW = {"TaskPredicate", "Retry", "Ignore", "Reject"}


@dataclass(frozen=True, repr=False)
class Rule:
    """Which exceptions, and which treatment. Build it with `on`."""

    types: tuple[type[BaseException], ...]
    treatment: Treatment
    #: Asked for every exception of these types; the rule matches if it answers with a true value.
    when: Callable[[Any], object] | None = None
    #: Exceptions that the rule does not match although *types* cover them.
    except_for: tuple[type[BaseException], ...] = ()
    max_retries: int | Inherit | None = INHERIT
    backoff: float | Inherit = INHERIT
    factor: float | Inherit = INHERIT
    backoff_max: float | Inherit = INHERIT
    shape: Shape | Inherit = INHERIT
    jitter: Jitter | Inherit = INHERIT
    max_elapsed: float | Inherit | None = INHERIT
    #: INHERIT: counted, unless the verdict is a rate limit and the rule names no max_retries.
    counted: bool | Inherit = INHERIT
    delay: Delay | None = None
    queue: str | None = None
    why: str | None = None
    #: What a decision calls this rule, in the place of its number and types.
    label: str | None = None

    def title(self, number: int) -> str:
        """``rule 2 (Timeout, ConnectionError)``."""
        return _title(self, number) if self.label is None else self.label

    def covers(self, cls: type[BaseException]) -> bool:
        """Whether the rule is for exceptions of *cls*, leaving ``when`` aside.

        As with ``except``, with one difference: what a task says by raising one of our own
        exceptions is not overruled by a rule that names a mere base class of it.
        ``on(Exception).retry()`` does not retry a PermanentError; ``on(PermanentError)`` and
        ``on(MyPermanentError)`` match it.
        """
        if issubclass(cls, self.except_for):
            return False
        agrees = self._agrees_with(cls)
        return any(
            issubclass(cls, named) and (agrees or issubclass(named, ResilienceError))
            for named in self.types
        )

    def _agrees_with(self, cls: type[BaseException]) -> bool:
        for own, asked in _OWN_WORD:
            if issubclass(cls, own):
                return asked is self.treatment
        return True

    def __repr__(self) -> str:
        condition = "" if self.when is None else f", when={_name(self.when)}"
        given = ", ".join(
            f"{field.name}={_shown(getattr(self, field.name))}"
            for field in fields(self)
            if field.name not in _NOT_TERMS and getattr(self, field.name) is not field.default
        )
        return f"on({', '.join(map(_name, self.types))}{condition}).{self.treatment.value}({given})"


_NOT_TERMS = {"types", "treatment", "when", "label"}


@dataclass(frozen=True, repr=False)
class Match:
    """A rule that lacks its treatment: the exceptions that `on` was given."""

    types: tuple[type[BaseException], ...]
    when: Callable[[Any], object] | None = None

    def retry(
        self,
        *,
        max_retries: int | Inherit | None = INHERIT,
        backoff: float | Inherit = INHERIT,
        factor: float | Inherit = INHERIT,
        backoff_max: float | Inherit = INHERIT,
        shape: Shape | Inherit = INHERIT,
        jitter: Jitter | Inherit = INHERIT,
        delay: Delay | None = None,
        max_elapsed: float | Inherit | None = INHERIT,
        counted: bool | Inherit = INHERIT,
    ) -> Rule:
        """Run it again. What is not given is as the policy says.

        *delay* is the wait itself, no jitter is added: seconds, a timedelta, or a function that
        takes the exception. Where the function raises or returns no delay, and where the worker's
        parent decides (a hard time limit, a lost worker), the backoff is used.

        With *counted* False the retry does not use up one of ``max_retries``: only
        ``max_elapsed`` ends it, and its delay is at least 1 s. Rate limits that the classifier
        finds are not counted either, unless *max_retries* or *counted* is given here.
        """
        return Rule(
            self.types,
            Treatment.RETRY,
            self.when,
            max_retries=max_retries,
            backoff=backoff,
            factor=factor,
            backoff_max=backoff_max,
            shape=shape,
            jitter=jitter,
            delay=delay,
            max_elapsed=max_elapsed,
            counted=counted,
        )

    def dead_letter(self, queue: str | None = None) -> Rule:
        """Make it a dead letter at once, in *queue* if it is not to be in the usual one."""
        return Rule(self.types, Treatment.DEAD_LETTER, self.when, queue=queue)

    def discard(self, why: str | None = None) -> Rule:
        """Neither a retry nor a dead letter. It is counted under *why*."""
        return Rule(self.types, Treatment.DISCARD, self.when, why=why)

    def title(self, number: int) -> str:
        """``rule 2 (Timeout, ConnectionError)``."""
        return _title(self, number)

    def __repr__(self) -> str:
        condition = "" if self.when is None else f", when={_name(self.when)}"
        return f"on({', '.join(map(_name, self.types))}{condition})"


def on(*exception_types: type[BaseException], when: Callable[[Any], object] | None = None) -> Match:
    """The exceptions that a rule is for: ``on(Timeout, ConnectionError).retry(max_retries=8)``.

    *when* narrows them down by their attributes: ``on(HTTPError, when=is_maintenance)``. If it
    raises, the rule does not match and that is logged. It is not called where the worker's parent
    decides (a hard time limit, a lost worker): such a rule does not match there, so that nothing
    is retried, buried or discarded on a condition that was never checked.
    """
    return Match(exception_types, when)


def check_rule(rule: Match | Rule) -> None:
    """Refuse what cannot be meant; the numbers are the policy's to check."""
    if not rule.types:
        raise TypeError("on() needs an exception class; on(Exception) is for all of them")
    for cls in rule.types:
        if isinstance(cls, (tuple, list, set, frozenset)):
            raise TypeError(f"on() takes exception classes, got {cls!r}: write on(*these)")
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"on() takes exception classes, got {cls!r}")
        if is_control_flow_class(cls):
            raise TypeError(f"{cls.__name__} is control flow, which no rule ever sees: take it out")
    if rule.when is not None and not callable(rule.when):
        raise TypeError(f"when takes a function of the exception, got {rule.when!r}")
    if isinstance(rule, Match):
        raise TypeError(
            "says which exceptions, but not what they deserve: "
            "add .retry(), .dead_letter() or .discard()"
        )
    for name, text in (("queue", rule.queue), ("why", rule.why)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} takes a text, got {text!r}")
        if text == "":
            raise ValueError(f"{name} is an empty text: leave it out")


def refuse_shadowed(where: str, rule: Rule, earlier: list[tuple[str, Rule]]) -> None:
    """Refuse *rule* if *earlier* rules, all without a condition, leave nothing for it.

    A rule against retrying is refused even if only one of its types is lost to an earlier retry:
    a fatal type must not be overruled by accident. That a retry rule names, next to others, a
    type that an earlier rule has dealt with is fine, as it is with ``except``.
    """
    covered = [
        (cls, [(title, other) for title, other in earlier if other.covers(cls)])
        for cls in rule.types
    ]
    if all(by for _, by in covered):
        titles = list(dict.fromkeys(by[0][0] for _, by in covered))
        verbs = "comes first and covers" if len(titles) == 1 else "come first and cover"
        raise ValueError(f"{where} can never match: {' and '.join(titles)} {verbs} it")
    if rule.treatment is Treatment.RETRY:
        return
    for cls, by in covered:
        if by and by[0][1].treatment is Treatment.RETRY:
            raise ValueError(
                f"{where} can never match {cls.__name__}: {by[0][0]} comes first and retries it; "
                f"put the rule against retrying first"
            )


def is_control_flow_class(cls: type[BaseException]) -> bool:
    """Whether *cls* steers the worker or the interpreter and so is no failure of a task."""
    if issubclass(cls, _CONTROL_FLOW):
        return True
    return any(
        base.__name__ in _CELERY_CONTROL_FLOW and base.__module__ == "celery.exceptions"
        for base in cls.__mro__
    )


def _title(rule: Match | Rule, number: int) -> str:
    condition = "" if rule.when is None else f", when {_name(rule.when)}"
    return f"rule {number} ({', '.join(map(_name, rule.types))}{condition})"


def _name(thing: object) -> str:
    return str(getattr(thing, "__name__", None) or repr(thing))


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_name, value))})"
    return _name(value) if callable(value) else repr(value)
