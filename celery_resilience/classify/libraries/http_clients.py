"""HTTP clients: what their exceptions mean when no answer came."""

from __future__ import annotations

from collections.abc import Iterable

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import permanent, transient
from celery_resilience.classify.http import by_status, headers_of
from celery_resilience.classify.reading import number, peek
from celery_resilience.classify.verdict import Verdict

__all__ = ["AIOHTTP", "HTTPX", "REQUESTS", "URLLIB", "URLLIB3"]

_NO_CONNECTION = transient("network", "the connection could not be made or did not hold")
_TIMED_OUT = transient("network", "no answer came in time")
_GARBLED = transient("network", "the answer arrived damaged")
_PROXY = transient("network", "the proxy did not connect us")
_BAD_URL = permanent("code", "that is not an address which can be fetched; check the URL")
_BAD_REQUEST = permanent("code", "the request is not valid HTTP; check headers and body")
_CIRCLES = permanent("http", "redirected too often; check the URL")
_TLS = transient("tls", "the encrypted connection could not be made")

HTTPX = Family(
    name="httpx",
    roots=frozenset({"httpx", "httpx2", "httpcore", "httpcore2"}),
    reads="`response`, else class",
    classes={
        **each(_TIMED_OUT, "TimeoutException"),
        **each(_NO_CONNECTION, "TransportError", "NetworkError", "ConnectionNotAvailable"),
        "RemoteProtocolError": transient("network", "the server broke off or does not speak HTTP"),
        "ProxyError": _PROXY,
        "DecodingError": _GARBLED,
        "UnsupportedProtocol": _BAD_URL,
        "InvalidURL": _BAD_URL,
        "LocalProtocolError": _BAD_REQUEST,
        "TooManyRedirects": _CIRCLES,
    },
)

REQUESTS = Family(
    name="requests",
    roots=frozenset({"requests"}),
    reads="`response`, else the wrapped exception, else class",
    classes={
        **each(_NO_CONNECTION, "ConnectionError"),
        **each(_TIMED_OUT, "Timeout"),
        **each(_GARBLED, "ChunkedEncodingError", "ContentDecodingError"),
        "ProxyError": _PROXY,
        "RetryError": transient("network", "every attempt of the client's own retries failed"),
        "SSLError": _TLS,
        **each(_BAD_URL, "MissingSchema", "InvalidSchema", "InvalidURL", "URLRequired"),
        "InvalidHeader": _BAD_REQUEST,
        "TooManyRedirects": _CIRCLES,
        "InvalidJSONError": permanent("code", "that is not JSON; check what the server sent"),
    },
)


def _reason(exception: BaseException) -> Iterable[object]:
    yield peek(exception, "reason")


URLLIB3 = Family(
    name="urllib3",
    roots=frozenset({"urllib3"}),
    reads="`reason`, else class",
    inner=_reason,
    http=False,
    classes={
        "HTTPError": _NO_CONNECTION,
        "TimeoutError": _TIMED_OUT,
        "ReadTimeoutError": _TIMED_OUT,
        "NewConnectionError": _NO_CONNECTION,
        "NameResolutionError": transient("dns", "the host name could not be resolved"),
        "ProtocolError": transient("network", "the server broke off in the middle"),
        "DecodeError": _GARBLED,
        "ProxyError": _PROXY,
        "SSLError": _TLS,
        "MaxRetryError": transient("network", "every attempt of the client's own retries failed"),
        **each(_BAD_URL, "LocationParseError", "LocationValueError"),
    },
)


def _read_code(exception: BaseException, look: Look) -> Verdict | None:
    code = number(peek(exception, "code"))
    return None if code is None else by_status(code, headers_of(exception), look)


URLLIB = Family(
    name="urllib, werkzeug",
    roots=frozenset({"urllib", "werkzeug"}),
    reads="`code` and `headers` of HTTPError, `reason` of URLError",
    inner=_reason,
    read=_read_code,
    classes={
        "URLError": transient("network", "the address could not be reached"),
        "ContentTooShortError": _GARBLED,
    },
)

AIOHTTP = Family(
    name="aiohttp",
    roots=frozenset({"aiohttp"}),
    reads="`status` and `headers`, else class",
    classes={
        "ClientConnectionError": _NO_CONNECTION,
        "ClientPayloadError": _GARBLED,
        "ServerDisconnectedError": transient("network", "the server hung up"),
        "ServerTimeoutError": _TIMED_OUT,
        "ClientConnectorDNSError": transient("dns", "the host name could not be resolved"),
        "ClientSSLError": _TLS,
        "ClientConnectorCertificateError": permanent("tls", "the certificate was not accepted"),
        "ServerFingerprintMismatch": permanent("tls", "the certificate is not the one expected"),
        **each(_BAD_URL, "InvalidURL", "NonHttpUrlClientError"),
        "TooManyRedirects": _CIRCLES,
        "ContentTypeError": permanent("http", "the answer is not of the type expected"),
    },
)
