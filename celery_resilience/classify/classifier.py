"""Putting an exception to the rules of its class."""

from __future__ import annotations

from celery_resilience.classify.explicit import heed, said
from celery_resilience.classify.family import Look
from celery_resilience.classify.plan import Plan, plan_of
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["classify", "examine", "is_control_flow"]

_UNREADABLE = Verdict(
    Kind.UNKNOWN, "unknown", "unknown", "the exception can't be read: the policy decides"
)


def classify(exception: BaseException, *, now: float | None = None) -> Verdict:
    """The verdict on *exception*; never raises, whatever the exception's own code does.

    *now*, in seconds since the epoch, is for dates in headers; None takes the clock.
    """
    try:
        return examine(exception, Look(now, examine))
    except BaseException:  # the stack is full, or the class itself is hostile
        return _UNREADABLE


def is_control_flow(exception: BaseException) -> bool:
    """Celery's own signal to the worker (Retry, Ignore, Reject ...), to be let through."""
    try:
        return plan_of(type(exception)).control_flow
    except BaseException:
        return False


def examine(exception: BaseException, look: Look) -> Verdict:
    """The verdict on *exception* as a part of *look*."""
    look.enter(exception)
    plan = plan_of(type(exception))
    spoken = said(exception) if plan.may_speak else None
    verdict = _first(plan, exception, look)
    return verdict if spoken is None else heed(spoken, verdict)


def _first(plan: Plan, exception: BaseException, look: Look) -> Verdict:
    for rule in plan.rules:
        try:
            verdict = rule(exception, look)
        except BaseException:
            # A property of foreign code raised, even an exit: the next rule may know more.
            continue
        if verdict is not None:
            return verdict
    return plan.otherwise
