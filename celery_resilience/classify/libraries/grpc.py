"""gRPC: status names, and the delay that a server asks for in trailing metadata.

The delay may come as a protobuf message; reading two fields of it needs no library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from math import isfinite
from typing import cast

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.http import asked_delay, by_status, headers_of
from celery_resilience.classify.reading import called, number, peek, text
from celery_resilience.classify.retry_after import fold
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["GRPC", "GRPC_STATUSES", "read_rpc"]

GRPC_STATUSES: dict[object, Finding] = {
    "UNAVAILABLE": transient("network", "the service is not available for now"),
    "ABORTED": transient("http", "it collided with another change"),
    "DEADLINE_EXCEEDED": transient("network", "the service did not answer in time"),
    **each(transient("http", "the service failed"), "INTERNAL", "UNKNOWN"),
    "CANCELLED": transient("network", "the call was cancelled"),
    "RESOURCE_EXHAUSTED": limited("http"),
    "INVALID_ARGUMENT": permanent("http", "the values are not acceptable; check what was sent"),
    "NOT_FOUND": permanent("http", "there is no such thing; check the name"),
    "ALREADY_EXISTS": permanent("http", "it exists already"),
    "PERMISSION_DENIED": permanent("auth", "not allowed; check the permissions of this account"),
    "UNAUTHENTICATED": permanent("auth", "credentials refused; check them"),
    "FAILED_PRECONDITION": permanent("http", "the system is not in a state that allows this"),
    "OUT_OF_RANGE": permanent("http", "out of range; check what was sent"),
    "UNIMPLEMENTED": permanent("http", "the service can't do that"),
    "DATA_LOSS": permanent("http", "the service lost data for good"),
}
_MOST = 100  # details and metadata looked at
_DETAILS = "grpc-status-details-bin"
_RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"


def read_rpc(exception: BaseException, look: Look) -> Verdict | None:
    """The verdict on a gRPC status, on the exception itself or as google.api_core keeps it."""
    code = peek(exception, "grpc_status_code")
    if code is None:
        code = peek(exception, "code")
        code = called(exception, "code") if callable(code) else code
    name = text(peek(code, "name"))
    finding = GRPC_STATUSES.get(name)
    if finding is None:
        status = number(code)
        verdict = None if status is None else by_status(status, headers_of(exception), look)
        rule, kind = (verdict.rule, verdict.kind) if verdict is not None else ("", Kind.PERMANENT)
    else:
        verdict, rule, kind = None, f"grpc.{name}", finding.kind
    delay = None if kind is Kind.PERMANENT else _delay(exception, look)
    if finding is None:
        known = verdict is None or delay is None or verdict.retry_after is not None
        return verdict if known else _with_delay(verdict, rule, delay)
    if delay is None:
        delay = asked_delay(finding, headers_of(exception), look)
    return finding.verdict(rule, delay)


def _with_delay(verdict: Verdict | None, rule: str, delay: float | None) -> Verdict | None:
    if verdict is None:
        return None
    return Finding(verdict.kind, verdict.category, verdict.hint).verdict(rule, delay)


def _delay(exception: BaseException, look: Look) -> float | None:
    """What RetryInfo or a pushback asks for: in details, or in the call's trailing metadata."""
    for detail in _items(peek(exception, "details")):
        retry_delay = peek(detail, "retry_delay")
        seconds, nanos = number(peek(retry_delay, "seconds")), number(peek(retry_delay, "nanos"))
        if retry_delay is not None and seconds is not None:
            return _sum(seconds, nanos or 0)
    for call in (exception, peek(exception, "response")):
        metadata = _items(called(call, "trailing_metadata"))
        asked = asked_delay(GRPC_STATUSES["UNAVAILABLE"], fold(metadata), look)
        if asked is not None:
            return asked
        for pair in metadata:
            key, value = cast("tuple[object, object]", pair)
            if key == _DETAILS and isinstance(value, bytes):
                return _retry_info(value)
    return None


def _items(values: object) -> list[object]:
    if callable(values) or values is None or isinstance(values, (str, bytes)):
        return []
    return list(islice(values, _MOST)) if isinstance(values, Iterable) else []


def _retry_info(status: bytes) -> float | None:
    """The delay in a serialised google.rpc.Status: details (3) of type RetryInfo, delay (1)."""
    for field, detail in _fields(status):
        if field != 3 or not isinstance(detail, bytes):
            continue
        parts = dict(_fields(detail))
        if parts.get(1) != _RETRY_INFO:
            continue
        info = parts.get(2, b"")
        duration = dict(_fields(info)).get(1) if isinstance(info, bytes) else None
        if isinstance(duration, bytes):
            amounts = dict(_fields(duration))
            seconds, nanos = amounts.get(1, 0), amounts.get(2, 0)
            if isinstance(seconds, int) and isinstance(nanos, int):
                return _sum(seconds, nanos)
    return None


def _sum(seconds: int, nanos: int) -> float | None:
    # Negative numbers are written as 64-bit two's complement.
    if not 0 <= seconds < 1 << 63 or not 0 <= nanos < 1_000_000_000:
        return None
    total = seconds + nanos / 1e9
    return total if isfinite(total) else None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(Number, value) of every field; stops with IndexError where the message is cut off."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            return
        if at + size > len(message):
            return
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return value, at


GRPC = Family(
    name="grpc",
    roots=frozenset({"grpc", "grpclib"}),
    reads="`code().name`; `grpc-retry-pushback-ms` and RetryInfo in `trailing_metadata()`",
    classes={
        "FutureTimeoutError": transient("network", "the service did not answer in time"),
        "FutureCancelledError": transient("network", "the call was cancelled"),
    },
    codes={"status": GRPC_STATUSES},
    read=read_rpc,
    prefix="grpc",
    http=False,
)
