"""What ``explain`` says about an exception and about a task, as data; times are in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from celery_resilience.classify import classify_name
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.policy.default import UNSTATED, DefaultPolicy
from celery_resilience.policy.policy import DEFAULT, Policy
from celery_resilience.policy.rules import Rule, Treatment
from celery_resilience.policy.schedule import Horizon, peak_rate, schedule
from celery_resilience.policy.terms import LEAST_UNCOUNTED_DELAY, Terms
from celery_resilience.settings import Settings
from celery_resilience.task.base import ResilientTask
from celery_resilience.task.coverage import why_uncovered
from celery_resilience.task.policies import policies_of

__all__ = ["count", "of_exception", "of_task"]

#: How many retries a schedule shows at most.
_ROWS = 12
#: What is no failure, by the rule that says so.
_NO_FAILURES = {
    "control_flow": "control_flow",
    "protocol.Discard": "discarded",
    "protocol.Snooze": "snoozed",
}

_HORIZON = tuple(field.name for field in fields(Horizon))

_COVER_IT = "call install(app) before the tasks are defined, or give it base=ResilientTask"
_LEAVE_IT = "let its own code catch what fails, or make it a task without a Strategy of its own"
_STATE_IT = "give it a failure_policy or base=ResilientTask, or call install(app, classify=True)"


def of_exception(name: str) -> dict[str, Any]:
    """The verdict on the exception *name*, and what the default policy makes of it.

    Raises ValueError, with a suggestion, where there is no such exception.
    """
    verdict = classify_name(name)
    return {
        "name": name,
        "is": "exception",
        "verdict": verdict.kind.value,
        "rule": verdict.rule,
        "category": verdict.category,
        "hint": verdict.hint,
        "max_retries": verdict.max_retries,
        "retry_after": verdict.retry_after,
        "by_default": _by_default(verdict),
    }


def _by_default(verdict: Verdict) -> dict[str, Any]:
    """What becomes of a failure with *verdict*, and the numbers that belong to that."""
    if verdict.rule in _NO_FAILURES:
        return {"is": _NO_FAILURES[verdict.rule]}
    if verdict.kind is Kind.PERMANENT:
        return {"is": "dead_letter"}
    if verdict.kind is Kind.EXPECTED:
        return {"is": "expected"}
    if verdict.kind is Kind.RATE_LIMITED:
        least = LEAST_UNCOUNTED_DELAY
        return {"is": "rate_limited", "least_delay": least, "max_elapsed": DEFAULT.max_elapsed}
    terms = UNSTATED.terms_for(verdict.kind)
    limits = [n for n in (terms.max_retries, verdict.max_retries) if n is not None]
    if not limits:
        return {"is": "retried", "max_elapsed": DEFAULT.max_elapsed}
    retries = min(limits)
    if retries == 0:
        return {"is": "dead_letter"}
    foreseen = schedule(terms.backoff, retries)
    return {
        "is": "retries",
        "waits": [wait.worst for wait in foreseen.waits],
        "expected": foreseen.horizon.expected,
    }


def of_task(task: Any, settings: Settings, tasks: int) -> dict[str, Any]:
    """Who decides about *task*'s failures, and what that comes to when *tasks* fail at once.

    Raises TypeError or ValueError where its policy or its options are wrong.
    """
    told: dict[str, Any] = {"name": task.name, "is": "task"}
    why = why_uncovered(task)
    if why is not None:
        fix = _LEAVE_IT if isinstance(task, ResilientTask) else _COVER_IT
        return {**told, "decides": f"not celery_resilience: {why}", "to_change_that": fix}
    policy = task.policy_in_force
    own_queue = getattr(task, "dead_letter_queue", None)
    throws = getattr(task, "throws", ()) or ()
    stated = bool(policy.rules) or policy.unmatched == "classify"
    return {
        **told,
        "decides": _who(task, policy),
        "to_change_that": None if stated else _STATE_IT,
        "dead_letter_queue": settings.dead_letter_queue if own_queue is None else own_queue,
        "expected": [cls.__qualname__ for cls in throws],
        "acks_late": bool(task.acks_late),
        "rules": [_rule(number, rule, policy) for number, rule in enumerate(policy.rules, 1)],
        "unmatched": policy.unmatched,
        "limits": _limits(policy.terms()),
        "limits_of_unknown": _limits(policy.terms_for(Kind.UNKNOWN)),
        "tasks": tasks,
        "schedules": list(_schedules(policy, tasks)),
    }


def _who(task: Any, policy: Policy) -> str:
    given_by = policies_of(task.app).of(task).by
    if given_by:
        return given_by
    if policy.rules:
        return "Celery's own options: what they don't name is not retried"
    if isinstance(policy, DefaultPolicy):
        return "the classifier"
    if policy.unmatched == "classify":
        return "the classifier, with the task's max_retries"
    return "self.retry in its body alone: any other failure is a dead letter at once"


def _rule(number: int, rule: Rule, policy: Policy) -> dict[str, Any]:
    told: dict[str, Any] = {"rule": rule.title(number), "treatment": rule.treatment.value}
    if rule.treatment is Treatment.RETRY:
        told["limits"] = _limits(policy.terms(rule))
    if rule.queue is not None:
        told["queue"] = rule.queue
    if rule.why is not None:
        told["why"] = rule.why
    if rule.except_for:
        told["except_for"] = [cls.__qualname__ for cls in rule.except_for]
    return told


def _limits(terms: Terms) -> dict[str, Any]:
    backoff = terms.backoff
    return {
        "max_retries": terms.max_retries,
        "max_elapsed": terms.max_elapsed,
        "delay": _name(terms.delay),
        "backoff": backoff.backoff,
        "factor": backoff.factor,
        "backoff_max": backoff.backoff_max,
        "shape": _name(backoff.shape),
        "jitter": backoff.jitter,
        "counted": terms.counted,
    }


def _name(value: Any) -> Any:
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value


def _schedules(policy: Policy, tasks: int) -> Iterator[dict[str, Any]]:
    for number, rule in enumerate(policy.rules, 1):
        if rule.treatment is Treatment.RETRY:
            yield _schedule(policy, rule, rule.title(number), tasks)
    if isinstance(policy, DefaultPolicy):
        yield _schedule(policy, None, "transient failures", tasks)
        yield _schedule(DEFAULT, None, "unknown failures", tasks)
    elif policy.unmatched == "classify":
        title = "what no rule matches" if policy.rules else "what the classifier retries"
        yield _schedule(policy, None, title, tasks)


def _schedule(policy: Policy, rule: Rule | None, title: str, tasks: int) -> dict[str, Any]:
    terms = policy.terms(rule)
    # Without a limit on the retries the first ones are shown.
    shown = _ROWS if terms.max_retries is None else min(terms.max_retries, _ROWS)
    waits = schedule(policy, shown, rule=rule).waits
    rates = peak_rate(policy, tasks, shown, rule=rule)
    horizon = None
    if terms.max_retries is not None:
        horizon = asdict(schedule(policy, min(terms.max_retries, 10_000), rule=rule).horizon)
    elif terms.max_elapsed is not None:
        horizon = dict.fromkeys(_HORIZON, terms.max_elapsed)
    return {
        "for": title,
        "max_retries": terms.max_retries,
        "delay_is_a_function": callable(terms.delay),
        "retries": [
            {**_finite(asdict(wait)), "peak_per_second": round(rate, 1)}
            for wait, rate in zip(waits, rates, strict=True)
        ],
        "horizon": None if horizon is None else _finite(horizon),
    }


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in numbers.items()}


def count(number: int, one: str, many: str) -> str:
    """``1 retry``, ``2 retries``."""
    return f"{number:,} {one if number == 1 else many}"
