"""Exceptions inside exceptions: groups, retry libraries, causes, buried certificates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from celery_resilience.classify.family import BREADTH, Family, Look
from celery_resilience.classify.finding import permanent, transient
from celery_resilience.classify.reading import (
    arguments,
    called,
    cause_of,
    context_is_suppressed,
    context_of,
    lineage,
    peek,
)
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["CERTIFICATE", "GROUP", "TENACITY", "argument", "cause", "certificate"]

CERTIFICATE = permanent(
    "tls", "the certificate was not accepted; check its date, its name and the trusted authorities"
)
_CERTIFICATES = frozenset(
    {
        ("ssl", "SSLCertVerificationError"),
        ("ssl", "CertificateError"),
        ("urllib3", "CertificateError"),
    }
)
_CERTIFICATE_VERDICT = CERTIFICATE.verdict("tls.certificate")
_FAR = 50  # exceptions searched for a certificate

#: Who wins in a group: one member that can't succeed means that the whole can't.
_WEIGHT = {
    Kind.PERMANENT: 3,
    Kind.RATE_LIMITED: 2,
    Kind.TRANSIENT: 1,
}


def certificate(exception: BaseException, look: Look) -> Verdict | None:
    """Permanent if a certificate was refused anywhere in the chain.

    Clients report it as a connection error, which it is not: it stays until an operator acts.
    """
    waiting: list[object] = [exception]
    seen: set[int] = set()
    while waiting and len(seen) < _FAR:
        one = waiting.pop()
        if id(one) in seen or not issubclass(type(one), BaseException):
            continue
        seen.add(id(one))
        if is_certificate(type(one)):
            return _CERTIFICATE_VERDICT
        waiting.extend(_near(one))  # type: ignore[arg-type]
    return None


def has_more(exception: BaseException) -> bool:
    """Something hangs on *exception* in which a certificate could be found."""
    return (
        cause_of(exception) is not None
        or context_of(exception) is not None
        or any(issubclass(type(one), BaseException) for one in arguments(exception)[:_FAR])
        or issubclass(type(peek(exception, "reason")), BaseException)
    )


def is_certificate(cls: type) -> bool:
    """The class says itself that a certificate was refused."""
    return any(base in _CERTIFICATES for base in lineage(cls))


def _near(exception: BaseException) -> Iterable[object]:
    yield from arguments(exception)[:_FAR]
    yield peek(exception, "reason")
    if not context_is_suppressed(exception):
        yield context_of(exception)
    yield cause_of(exception)


def argument(exception: BaseException, look: Look) -> Verdict | None:
    """The verdict on an exception handed on as the first argument: ``Failed(error)``."""
    given = arguments(exception)
    return look.into(given[0]) if given else None


def cause(exception: BaseException, look: Look) -> Verdict | None:
    """The verdict on what an unknown exception was raised from.

    What it merely was raised during counts too, unless that is a bug in Python's words: a
    KeyError that led to another way, which then failed, does not make that failure a bug.
    """
    verdict = look.into(cause_of(exception))
    if verdict is not None or context_is_suppressed(exception):
        return verdict
    verdict = look.into(context_of(exception))
    return None if verdict is None or verdict.rule.startswith("code.") else verdict


def _read_group(exception: BaseException, look: Look) -> Verdict | None:
    members = peek(exception, "exceptions", ())
    verdicts = [
        verdict
        for member in islice(members, BREADTH)  # type: ignore[call-overload]
        if (verdict := look.into(member)) is not None
    ]
    if not verdicts:
        return None
    worst = max(verdicts, key=lambda verdict: _WEIGHT[verdict.kind])
    if worst.kind is Kind.PERMANENT:
        return worst
    delays = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
    limits = [verdict.max_retries for verdict in verdicts if verdict.max_retries is not None]
    longest = max(delays, default=None)
    hint = worst.hint
    if longest != worst.retry_after:
        hint += f"; another one in the group asked for {longest:.12g} s"
    return replace(worst, hint=hint, retry_after=longest, max_retries=min(limits, default=None))


def _last_attempt(exception: BaseException) -> Iterable[object]:
    # A timeout of zero: a future that is not done must not hold us up.
    yield called(peek(exception, "last_attempt"), "exception", 0)


GROUP = Family(
    name="exception groups",
    roots=frozenset({"builtins", "exceptiongroup"}),
    reads="every member: one permanent makes the group permanent, then one rate limited makes it "
    "rate limited with the longest delay",
    read=_read_group,
    http=False,
)

TENACITY = Family(
    name="tenacity",
    roots=frozenset({"tenacity"}),
    reads="`last_attempt.exception()`",
    classes={"TryAgain": transient("task", "the task asks for another try")},
    inner=_last_attempt,
    http=False,
)
