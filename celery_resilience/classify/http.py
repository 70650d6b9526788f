"""Statuses: what every HTTP answer says, whichever library carried it here."""

from __future__ import annotations

from collections.abc import Mapping

from celery_resilience.classify.family import Look
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.reading import number, peek
from celery_resilience.classify.retry_after import VETOES, fold, server_delay
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["STATUSES", "VETO", "answer", "by_status", "finding_of_status"]


def _retry(status: int, says: str) -> Finding:
    return transient("http", f"HTTP {status}: {says}")


def _refuse(status: int, says: str) -> Finding:
    return permanent("http", f"HTTP {status}: {says}")


#: Statuses with a word of their own; other 3xx, 4xx and 5xx are permanent (`finding_of_status`).
STATUSES: dict[object, Finding] = {
    400: _refuse(400, "the request is wrong; check what the task sent"),
    401: _refuse(401, "credentials refused; check the key"),
    402: _refuse(402, "payment required; check the account's plan and balance"),
    403: _refuse(403, "not allowed; check the permissions of this account"),
    404: _refuse(404, "there is no such thing; check the address and the id"),
    405: _refuse(405, "this address does not take that method"),
    407: _refuse(407, "the proxy refused our credentials; check the proxy's settings"),
    408: _retry(408, "the server gave up waiting for the request"),
    409: _retry(409, "it collided with another change; the next attempt sees the new state"),
    410: _refuse(410, "it is gone for good"),
    413: _refuse(413, "the request is too large; send less at once"),
    415: _refuse(415, "the server does not take this content type"),
    420: limited("http"),
    422: _refuse(422, "the values are not acceptable; check what the task sent"),
    423: _retry(423, "it is locked by another client"),
    425: _retry(425, "too early: the server asks for the same request again"),
    429: limited("http"),
    451: _refuse(451, "not available for legal reasons"),
    500: _retry(500, "the server failed"),
    501: _refuse(501, "the server can't do that at all"),
    502: _retry(502, "a gateway got no proper answer from the server behind it"),
    503: _retry(503, "the service is unavailable for now"),
    504: _retry(504, "a gateway got no answer in time from the server behind it"),
    505: _refuse(505, "the server does not speak this version of HTTP"),
    507: _retry(507, "the server is out of storage"),
    509: _retry(509, "the server is out of bandwidth"),
    **{
        code: _retry(code, "the CDN could not get an answer from the server")
        for code in range(520, 526)
    },
    527: _retry(527, "the CDN could not get an answer from the server"),
    529: limited("http", "rate limited, the service is overloaded"),
    530: _retry(530, "the CDN could not reach the server"),
    598: _retry(598, "a proxy's read timed out"),
    599: _retry(599, "a proxy's connection timed out"),
}

#: What the headers in which a server decides for us say.
VETO: dict[object, Finding] = {
    "true": transient("http", "the server says that a retry is worth while"),
    "false": permanent("http", "the server says not to retry"),
}


def finding_of_status(status: int, headers: Mapping[str, str]) -> Finding | None:
    """What a status means; None for those that are no error (below 300)."""
    if status < 300 or status > 599:
        return None
    # GitHub and Google answer 403 to a client that is too fast; 413 with a date means "not now".
    if status == 403 and ("retry-after" in headers or headers.get("x-ratelimit-remaining") == "0"):
        return limited("http")
    if status == 413 and "retry-after" in headers:
        return limited("http")
    known = STATUSES.get(status)
    if known is not None:
        return known
    if status < 400:
        return _refuse(status, "a redirect that was not followed; check the address")
    return _refuse(
        status, "the request was refused" if status < 500 else "the server refuses for good"
    )


def by_status(status: int, headers: Mapping[str, str], look: Look) -> Verdict | None:
    """The verdict on an answer with *status* and folded *headers*, the server's veto included."""
    finding = finding_of_status(status, headers)
    if finding is None:
        return None
    rule = f"http.status.{status}"
    for name in VETOES:
        said = VETO.get(headers.get(name, "").lower())
        if said is not None and not (
            said.kind is Kind.TRANSIENT and finding.kind is Kind.RATE_LIMITED
        ):
            finding, rule = said, f"http.header.{name}"
            break
    return finding.verdict(rule, asked_delay(finding, headers, look))


def asked_delay(finding: Finding, headers: Mapping[str, str], look: Look) -> float | None:
    """The delay that *headers* ask for, as far as *finding* leaves room for a retry."""
    if finding.kind is Kind.PERMANENT:
        return None
    return server_delay(headers, look.now, quota=finding.kind is Kind.RATE_LIMITED)


def answer(exception: BaseException, look: Look) -> Verdict | None:
    """The verdict on anything that carries the shape of an HTTP answer."""
    status = status_of(exception)
    if status is None:
        return _veto_alone(exception)
    return by_status(status, headers_of(exception), look)


def status_of(exception: BaseException) -> int | None:
    """The first HTTP status found on an exception or on the answer that it carries."""
    for name in ("status_code", "http_status", "status"):
        if (status := _status(peek(exception, name))) is not None:
            return status
    # A requests.Response of 4xx is falsy: ask whether it is there, never whether it is true.
    for owner, name in (("response", "status_code"), ("meta", "status"), ("resp", "status")):
        carrier = peek(exception, owner)
        if carrier is not None and (status := _status(peek(carrier, name))) is not None:
            return status
    return None


def headers_of(exception: BaseException) -> dict[str, str]:
    """The folded headers of the answer that an exception carries; empty if it carries none."""
    for owner in ("response", "meta"):
        carrier = peek(exception, owner)
        if carrier is not None and (folded := fold(peek(carrier, "headers"))):
            return folded
    return fold(peek(exception, "headers")) or fold(peek(exception, "resp"))


def _veto_alone(exception: BaseException) -> Verdict | None:
    if peek(exception, "response") is None and peek(exception, "headers") is None:
        return None
    headers = headers_of(exception)
    for name in VETOES:
        said = VETO.get(headers.get(name, "").lower())
        if said is not None:
            return said.verdict(f"http.header.{name}")
    return None


def _status(value: object) -> int | None:
    status = number(value)
    return status if status is not None and 100 <= status <= 599 else None
