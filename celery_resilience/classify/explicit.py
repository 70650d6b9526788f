"""What a task says itself: errors of ours, and two attributes that any error may have."""

from __future__ import annotations

from dataclasses import replace

from celery_resilience.classify.family import Family, Look
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.reading import duration, peek
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["SPOKEN", "TASK", "heed", "said"]

#: What attributes of a foreign exception say; `retry_after` is believed if it is a number or a
#: timedelta (werkzeug's may be a datetime), `retryable` if it is a bool.
SPOKEN: dict[object, Finding] = {
    "retryable=True": transient("task", "the exception says that it is retryable"),
    "retryable=False": permanent("task", "the exception says that it is not retryable"),
    "retry_after": limited("task", "the exception names a delay"),
}

_CLASSES = {
    "RateLimitedError": limited("task", "rate limited, says the task"),
    "TransientError": transient("task", "the task says that a retry may succeed"),
    "PermanentError": permanent("task", "the task says that no retry can help"),
    "Snooze": limited("task", "the task wants to run again later"),
    "Discard": permanent("task", "the task says that the work is no longer wanted"),
    "BodyExited": permanent("process", "the task tried to end its process; find out why"),
    "BrokerError": transient("broker", "a broker could not do what was asked of it"),
}


def _read_ours(exception: BaseException, look: Look) -> Verdict | None:
    name = next(
        base.__name__
        for base in type(exception).__mro__
        if base.__name__ in _CLASSES and base.__module__ == "celery_resilience.errors"
    )
    attribute = "delay" if name == "Snooze" else "retry_after"
    asked = duration(peek(exception, attribute))
    return _CLASSES[name].verdict(f"protocol.{name}", asked)


TASK = Family(
    name="what the task says",
    roots=frozenset({"celery_resilience"}),
    reads="class; `retry_after`, `delay`",
    classes=_CLASSES,
    codes={"attribute": SPOKEN},
    read=_read_ours,
    prefix="protocol",
)


def said(exception: BaseException) -> tuple[bool | None, float | None] | None:
    """(retryable, retry_after) of a foreign exception, None if it says neither."""
    retryable = peek(exception, "retryable")
    retry_after = duration(peek(exception, "retry_after"))
    believed = retryable if type(retryable) is bool else None
    return None if believed is None and retry_after is None else (believed, retry_after)


def heed(spoken: tuple[bool | None, float | None], otherwise: Verdict) -> Verdict:
    """What the exception said, with what the other rules know in addition.

    A number alone says that a retry is wanted, not of which kind: a 503 with it stays a 503.
    """
    retryable, retry_after = spoken
    if retryable is False:
        return SPOKEN["retryable=False"].verdict("protocol.retryable")
    wanted = otherwise.kind in (Kind.TRANSIENT, Kind.RATE_LIMITED)
    if retryable is None:
        assert retry_after is not None
        if not wanted:
            return SPOKEN["retry_after"].verdict("protocol.retry_after", retry_after)
        hint = f"{otherwise.hint}; the exception asks for {retry_after:.12g} s"
        return replace(otherwise, hint=hint, retry_after=retry_after)
    if otherwise.kind is Kind.RATE_LIMITED:
        asked = otherwise.retry_after if retry_after is None else retry_after
        return replace(otherwise, retry_after=asked)
    asked = retry_after if retry_after is not None or not wanted else otherwise.retry_after
    return SPOKEN["retryable=True"].verdict("protocol.retryable", asked)
