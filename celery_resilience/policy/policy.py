"""What a failed attempt deserves: ordered rules and limits, a `Failure` in, a `Decision` out.

A policy is a value. It reads no clock, draws from the Random it is handed, and `Policy.decide`
answers every failure: functions of the user's that raise or return nonsense are logged and the
backoff takes their place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from random import Random
from typing import Any, Literal, TypeVar

from celery_resilience.classify.verdict import Kind
from celery_resilience.errors import Discard, Snooze, TransientError, did_you_mean
from celery_resilience.policy.backoff import (
    DEFAULT_BACKOFF,
    Backoff,
    Jitter,
    Shape,
    checked_delay,
    checked_number,
    checked_retries,
)
from celery_resilience.policy.callables import matches, seconds_of
from celery_resilience.policy.decision import Decision, Drop, Failure, Reason
from celery_resilience.policy.rules import (
    INHERIT,
    Match,
    Rule,
    Treatment,
    check_rule,
    on,
    refuse_shadowed,
)
from celery_resilience.policy.terms import LONGEST_DELAY, Terms, give_up, retry

__all__ = ["DEFAULT", "LONGEST_DELAY", "Policy", "Terms", "on"]

T = TypeVar("T")

#: What happens to an exception that no rule matches: the verdict decides, or no rule asked for a
#: retry and it becomes a dead letter.
Unmatched = Literal["classify", "give_up"]
_UNMATCHED = ("classify", "give_up")


@dataclass(frozen=True, init=False, repr=False)
class Policy:
    """Rules, of which the first that matches decides as with ``except``, and limits.

    What no rule matches goes by the verdict of the classifier, under this policy's limits
    (*unmatched* = "classify"), or is given up because no rule asked for a retry ("give_up").
    Even then `Snooze`, `Discard` and `TransientError` mean what they say, and an exception that
    the task lists in ``throws`` leaves no dead letter.
    """

    rules: tuple[Rule, ...]
    #: Counted retries, None for no limit; 3 retries are 4 attempts.
    max_retries: int | None
    backoff: float
    factor: float
    backoff_max: float
    shape: Shape
    jitter: Jitter
    #: No retry later than this many seconds after the first attempt began; None for no limit.
    max_elapsed: float | None
    name: str | None
    unmatched: Unmatched

    def __init__(
        self,
        *rules: Rule,
        max_retries: int | None = 3,
        backoff: float = DEFAULT_BACKOFF.backoff,
        factor: float = DEFAULT_BACKOFF.factor,
        backoff_max: float = DEFAULT_BACKOFF.backoff_max,
        shape: Shape = DEFAULT_BACKOFF.shape,
        jitter: Jitter = DEFAULT_BACKOFF.jitter,
        max_elapsed: float | None = 86400.0,
        name: str | None = None,
        unmatched: Unmatched = "classify",
    ) -> None:
        given = {
            "rules": rules,
            "max_retries": max_retries,
            "backoff": backoff,
            "factor": factor,
            "backoff_max": backoff_max,
            "shape": shape,
            "jitter": jitter,
            "max_elapsed": max_elapsed,
            "name": name,
            "unmatched": unmatched,
        }
        for argument, value in given.items():
            object.__setattr__(self, argument, value)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"policy: name takes a text, got {name!r}")
        where = "policy" if name is None else f"policy {name!r}"
        terms = _saying_where(where, self.terms)
        for number in ("backoff", "factor", "backoff_max", "jitter"):
            object.__setattr__(self, number, getattr(terms.backoff, number))
        object.__setattr__(self, "max_elapsed", terms.max_elapsed)
        if unmatched not in _UNMATCHED:
            raise ValueError(
                f"{where}: unmatched takes 'classify' or 'give_up', got {unmatched!r}"
                f"{did_you_mean(unmatched, _UNMATCHED)}"
            )
        self._check_rules("" if name is None else f"{where}: ")

    def decide(self, failure: Failure, random: Random, *, call_user_code: bool = True) -> Decision:
        """What becomes of the message whose attempt failed so.

        Without *call_user_code* (in the worker's parent, whose loop must not wait)
        a rule with a ``when`` does not match, and the backoff stands in for ``delay=`` functions
        and for shapes of the user's own.
        """
        for number, rule in enumerate(self.rules, start=1):
            title = rule.title(number)
            if matches(rule, title, failure, call_user_code):
                return self._by_rule(rule, title, failure, random, call_user_code)
        exception, verdict = failure.exception, failure.verdict
        if isinstance(exception, Snooze):
            return self._snooze(exception, failure, random, call_user_code)
        if isinstance(exception, Discard):
            return Drop(str(getattr(exception, "why", "discarded")), "raised by the task: Discard")
        title = f"classifier: {verdict.rule}"
        if verdict.kind is Kind.EXPECTED:
            return Drop("expected", title)
        if self.unmatched == "give_up" and not isinstance(exception, TransientError):
            return give_up(failure, Reason.PERMANENT, "no rule asks for a retry")
        if verdict.kind is Kind.PERMANENT:
            return give_up(failure, Reason.PERMANENT, title)
        return retry(failure, self.terms_for(verdict.kind), title, random, call_user_code)

    def terms_for(self, kind: Kind) -> Terms:
        """The limits and waits of a failure of *kind* that no rule matches."""
        return self.terms()

    def terms(self, rule: Rule | None = None) -> Terms:
        """The limits and waits of *rule*, or of what no rule matches."""
        backoff = Backoff(
            backoff=_given(rule, "backoff", self.backoff),
            factor=_given(rule, "factor", self.factor),
            backoff_max=_given(rule, "backoff_max", self.backoff_max),
            shape=_given(rule, "shape", self.shape),
            jitter=_given(rule, "jitter", self.jitter),
        )
        max_retries = checked_retries(_given(rule, "max_retries", self.max_retries))
        max_elapsed = _given(rule, "max_elapsed", self.max_elapsed)
        if max_elapsed is not None:
            max_elapsed = checked_number("max_elapsed", max_elapsed)
        if rule is None:
            return Terms(max_retries, max_elapsed, backoff)
        names_retries = rule.max_retries is not INHERIT
        counted: bool | None = _given(rule, "counted", True if names_retries else None)
        if counted is not None and not isinstance(counted, bool):
            raise TypeError(f"counted takes True or False, got {counted!r}")
        if names_retries and counted is False:
            raise ValueError(
                "max_retries limits counted retries only: drop it, or drop counted=False"
            )
        return Terms(
            max_retries,
            max_elapsed,
            backoff,
            delay=checked_delay(rule.delay),
            counted=counted,
            yields_to_verdict=not names_retries,
        )

    def replace(self, **changes: Any) -> Policy:
        """A policy that differs in *changes*: any argument of `Policy`, and ``rules``."""
        rules = changes.pop("rules", self.rules)
        return Policy(*rules, **{**self._arguments(), **changes})

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _ARGUMENTS}

    def __repr__(self) -> str:
        changed = [
            f"{name}={value!r}"
            for name, value in self._arguments().items()
            if value != getattr(DEFAULT, name)
        ]
        return f"Policy({', '.join([*map(repr, self.rules), *changed])})"

    def _by_rule(
        self, rule: Rule, title: str, failure: Failure, random: Random, call_user_code: bool
    ) -> Decision:
        if rule.treatment is Treatment.DEAD_LETTER:
            return give_up(failure, Reason.PERMANENT, title, rule.queue)
        if rule.treatment is Treatment.DISCARD:
            return Drop("discarded" if rule.why is None else rule.why, title)
        return retry(failure, self.terms(rule), title, random, call_user_code)

    def _snooze(
        self, snooze: Snooze, failure: Failure, random: Random, call_user_code: bool
    ) -> Decision:
        own = self.terms()
        # A subclass may have lost the delay on its way here; the backoff then takes its place.
        delay = seconds_of(getattr(snooze, "delay", None))
        terms = Terms(own.max_retries, own.max_elapsed, own.backoff, delay, counted=False)
        return retry(failure, terms, "raised by the task: Snooze", random, call_user_code)

    def decide_requeue(self, failure: Failure, random: Random) -> Decision:
        """What follows when a task requeues its message: uncounted, with the policy's backoff, and
        not for longer than its ``max_elapsed`` (a day where it has none)."""
        own = self.terms_for(failure.verdict.kind)
        elapsed = DEFAULT.max_elapsed if own.max_elapsed is None else own.max_elapsed
        terms = Terms(None, elapsed, own.backoff, None, counted=False)
        return retry(failure, terms, "put back by the task: Reject", random, True)

    def put_back(self, failure: Failure, random: Random) -> Decision:
        """The old name of :meth:`decide_requeue`."""
        warnings.warn("Policy.put_back is called decide_requeue", DeprecationWarning, stacklevel=2)
        return self.decide_requeue(failure, random)

    def _check_rules(self, where: str) -> None:
        unconditional: list[tuple[str, Rule]] = []
        for number, rule in enumerate(self.rules, start=1):
            if not isinstance(rule, (Match, Rule)):
                raise TypeError(
                    f"{where}rule {number} is {rule!r}: write on(SomeError).retry(), "
                    f".dead_letter() or .discard()"
                )
            title = where + rule.title(number)
            _saying_where(title, check_rule, rule)
            _saying_where(title, self.terms, rule)
            refuse_shadowed(title, rule, unconditional)
            if rule.when is None:
                unconditional.append((rule.title(number), rule))


_ARGUMENTS = tuple(field.name for field in fields(Policy) if field.name != "rules")


def _given(rule: Rule | None, name: str, otherwise: Any) -> Any:
    value = INHERIT if rule is None else getattr(rule, name)
    return otherwise if value is INHERIT else value


def _saying_where(where: str, check: Callable[..., T], *args: object) -> T:
    try:
        return check(*args)
    except (TypeError, ValueError) as exc:
        raise type(exc)(f"{where}: {exc}") from None


#: A policy without arguments.
DEFAULT = Policy()
