"""Statuses, and the HTTP clients."""

from __future__ import annotations

import asyncio
import errno
import ssl

from tests.classify.case import Case, chained, later, never, raised, retry
from tests.classify.conftest import library

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
IN_20_SECONDS = "Thu, 01 Jan 2026 00:00:20 GMT"


def httpx(status: int, _client: str = "httpx", **headers: str) -> BaseException:
    client = library(_client)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = client.Request("GET", "http://x")
    return raised(client.Response(status, headers=sent, request=request).raise_for_status)


def httpx_error(name: str, client: str = "httpx") -> BaseException:
    return getattr(library(client), name)("x")  # type: ignore[no-any-return]


def requests(status: int, **headers: str) -> BaseException:
    answer = library("requests").Response()
    answer.status_code = status
    answer.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    assert not answer, "a requests.Response of an error is falsy"
    return raised(answer.raise_for_status)


def requests_error(name: str, *args: object) -> BaseException:
    return getattr(library("requests").exceptions, name)(*args)  # type: ignore[no-any-return]


def get(url: str) -> BaseException:
    client = library("requests")
    return raised(lambda: client.get(url, timeout=1))


def urllib3(name: str, *args: object) -> BaseException:
    return getattr(library("urllib3").exceptions, name)(*args)  # type: ignore[no-any-return]


def gave_up(reason: BaseException) -> BaseException:
    return urllib3("MaxRetryError", None, "/", reason)


def aiohttp(status: int, _name: str = "ClientResponseError", **headers: str) -> BaseException:
    library("aiohttp")
    sent = library("multidict").CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()})
    return getattr(library("aiohttp"), _name)(None, (), status=status, headers=sent)  # type: ignore[no-any-return]


def aiohttp_error(name: str, *args: object) -> BaseException:
    return getattr(library("aiohttp"), name)(*args)  # type: ignore[no-any-return]


def aiohttp_connector(name: str, error: BaseException) -> BaseException:
    key = library("aiohttp.client_reqrep").ConnectionKey("x", 80, False, True, None, None, None)
    return getattr(library("aiohttp"), name)(key, error)  # type: ignore[no-any-return]


def aiohttp_refused() -> BaseException:
    client = library("aiohttp")

    async def fetch() -> None:
        async with client.ClientSession() as session:
            await session.get("http://127.0.0.1:9")

    return raised(lambda: asyncio.run(fetch()))


STATUSES = [
    *(
        retry(f"httpx {s}", lambda s=s: httpx(s), f"http.status.{s}", "http")
        for s in (
            408,
            409,
            423,
            425,
            500,
            502,
            503,
            504,
            507,
            509,
            520,
            521,
            522,
            523,
            524,
            525,
            527,
            530,
            598,
            599,
        )
    ),  # type: ignore[misc]
    *(
        never(f"httpx {s}", lambda s=s: httpx(s), f"http.status.{s}", "http")
        for s in (
            301,
            304,
            400,
            401,
            402,
            403,
            404,
            405,
            410,
            413,
            418,
            422,
            451,
            501,
            505,
            506,
            508,
            510,
            511,
        )
    ),  # type: ignore[misc]
    *(
        later(f"httpx {s}", lambda s=s: httpx(s), f"http.status.{s}", "http")
        for s in (420, 429, 529)
    ),  # type: ignore[misc]
    later(
        "429 with seconds",
        lambda: httpx(429, retry_after="12"),
        "http.status.429",
        "http",
        retry_after=12.0,
    ),
    later(
        "429 with a fraction",
        lambda: httpx(429, retry_after="1.5"),
        "http.status.429",
        "http",
        retry_after=1.5,
    ),
    later(
        "429 with a date, our clock",
        lambda: httpx(429, retry_after=IN_20_SECONDS),
        "http.status.429",
        "http",
        retry_after=20.0,
    ),
    later(
        "429 with a date, the server's clock",
        lambda: httpx(
            429, retry_after="Thu, 01 Jan 2032 00:00:20 GMT", date="Thu, 01 Jan 2032 00:00:00 GMT"
        ),
        "http.status.429",
        "http",
        retry_after=20.0,
    ),
    later(
        "429 in the far future",
        lambda: httpx(429, retry_after="Thu, 01 Jan 2099 00:00:00 GMT", date=DATE),
        "http.status.429",
        "http",
        retry_after=2303683200.0,
    ),
    later("429 infinite", lambda: httpx(429, retry_after="inf"), "http.status.429", "http"),
    later("429 negative", lambda: httpx(429, retry_after="-5"), "http.status.429", "http"),
    later("429 nonsense", lambda: httpx(429, retry_after="soon"), "http.status.429", "http"),
    retry(
        "503 with seconds",
        lambda: httpx(503, retry_after="5"),
        "http.status.503",
        "http",
        retry_after=5.0,
    ),
    retry(
        "a quota that has nothing to do with a 502",
        lambda: httpx(502, x_ratelimit_reset="1767229200"),
        "http.status.502",
        "http",
    ),
    later(
        "403 too fast",
        lambda: httpx(403, retry_after="60"),
        "http.status.403",
        "http",
        retry_after=60.0,
    ),
    later(
        "403 quota used up",
        lambda: httpx(403, x_ratelimit_remaining="0", x_ratelimit_reset="1767225660"),
        "http.status.403",
        "http",
        retry_after=60.0,
    ),
    never(
        "403 with quota left",
        lambda: httpx(403, x_ratelimit_remaining="9", x_ratelimit_reset="1767225660"),
        "http.status.403",
        "http",
    ),
    later(
        "413 for now",
        lambda: httpx(413, retry_after="9"),
        "http.status.413",
        "http",
        retry_after=9.0,
    ),
    never(
        "veto of a 503",
        lambda: httpx(503, x_should_retry="false"),
        "http.header.x-should-retry",
        "http",
    ),
    never(
        "veto of a 429",
        lambda: httpx(429, x_should_retry="false", retry_after="4"),
        "http.header.x-should-retry",
        "http",
    ),
    retry(
        "wish for a 400",
        lambda: httpx(400, x_should_retry="true"),
        "http.header.x-should-retry",
        "http",
    ),
    later(
        "wish for a 429",
        lambda: httpx(429, x_should_retry="true", retry_after="4"),
        "http.status.429",
        "http",
        retry_after=4.0,
    ),
    never(
        "stripe's veto",
        lambda: httpx(500, stripe_should_retry="false"),
        "http.header.stripe-should-retry",
        "http",
    ),
]

CLIENTS = [
    later(
        "httpx2 429",
        lambda: httpx(429, "httpx2", retry_after="2"),
        "http.status.429",
        "http",
        retry_after=2.0,
    ),
    *(
        retry(f"httpx {n}", lambda n=n: httpx_error(n), rule, "network")
        for n, rule in [  # type: ignore[misc]
            ("ConnectTimeout", "httpx.TimeoutException"),
            ("PoolTimeout", "httpx.TimeoutException"),
            ("ReadError", "httpx.NetworkError"),
            ("RemoteProtocolError", "httpx.RemoteProtocolError"),
            ("ProxyError", "httpx.ProxyError"),
            ("DecodingError", "httpx.DecodingError"),
        ]
    ),
    *(
        never(f"httpx {n}", lambda n=n: httpx_error(n), f"httpx.{n}", category)
        for n, category in [  # type: ignore[misc]
            ("UnsupportedProtocol", "code"),
            ("LocalProtocolError", "code"),
            ("InvalidURL", "code"),
            ("TooManyRedirects", "http"),
        ]
    ),
    retry(
        "httpx2 connect",
        lambda: httpx_error("ConnectError", "httpx2"),
        "httpx2.NetworkError",
        "network",
    ),
    retry(
        "httpcore connect",
        lambda: httpx_error("ConnectError", "httpcore"),
        "httpcore.NetworkError",
        "network",
    ),
    never(
        "httpx certificate",
        lambda: chained(httpx_error("ConnectError"), ssl.SSLCertVerificationError(1, "x")),
        "tls.certificate",
        "tls",
    ),
    retry(
        "httpx from a missing socket",
        lambda: chained(httpx_error("ConnectError"), FileNotFoundError(errno.ENOENT, "x")),
        "httpx.NetworkError",
        "network",
    ),
    retry(
        "requests 503",
        lambda: requests(503, retry_after="3"),
        "http.status.503",
        "http",
        retry_after=3.0,
    ),
    never("requests 404, a falsy answer", lambda: requests(404), "http.status.404", "http"),
    later(
        "requests 429, a falsy answer",
        lambda: requests(429, retry_after="3"),
        "http.status.429",
        "http",
        retry_after=3.0,
    ),
    retry(
        "requests refused",
        lambda: get("http://127.0.0.1:9"),
        "urllib3.NewConnectionError",
        "network",
    ),
    never("requests no schema", lambda: get("nowhere"), "requests.MissingSchema", "code"),
    never("requests foreign schema", lambda: get("gopher://x"), "requests.InvalidSchema", "code"),
    never("requests bad url", lambda: get("http://"), "requests.InvalidURL", "code"),
    *(
        retry(f"requests {n}", lambda n=n: requests_error(n), rule, "network")
        for n, rule in [  # type: ignore[misc]
            ("ConnectionError", "requests.ConnectionError"),
            ("ConnectTimeout", "requests.ConnectionError"),
            ("ReadTimeout", "requests.Timeout"),
            ("ChunkedEncodingError", "requests.ChunkedEncodingError"),
            ("ContentDecodingError", "requests.ContentDecodingError"),
            ("RetryError", "requests.RetryError"),
        ]
    ),
    never(
        "requests header", lambda: requests_error("InvalidHeader"), "requests.InvalidHeader", "code"
    ),
    never(
        "requests redirects",
        lambda: requests_error("TooManyRedirects"),
        "requests.TooManyRedirects",
        "http",
    ),
    never(
        "requests json",
        lambda: requests_error("JSONDecodeError", "x", "{", 0),
        "requests.InvalidJSONError",
        "code",
    ),
    retry(
        "requests tls",
        lambda: requests_error("SSLError", gave_up(urllib3("SSLError", ssl.SSLEOFError(8, "x")))),
        "tls.SSLError",
        "tls",
    ),
    never(
        "requests certificate",
        lambda: requests_error(
            "SSLError", gave_up(urllib3("SSLError", ssl.SSLCertVerificationError(1, "x")))
        ),
        "tls.certificate",
        "tls",
    ),
    retry(
        "urllib3 read timeout",
        lambda: urllib3("ReadTimeoutError", None, "/", "x"),
        "urllib3.ReadTimeoutError",
        "network",
    ),
    retry(
        "urllib3 protocol",
        lambda: urllib3("ProtocolError", "x"),
        "urllib3.ProtocolError",
        "network",
    ),
    retry(
        "urllib3 name",
        lambda: urllib3("NameResolutionError", "x", None, OSError("x")),
        "urllib3.NameResolutionError",
        "dns",
    ),
    retry(
        "urllib3 gave up",
        lambda: gave_up(urllib3("ProtocolError", "x")),
        "urllib3.ProtocolError",
        "network",
    ),
    never(
        "urllib3 gave up on a url",
        lambda: gave_up(urllib3("LocationParseError", "x")),
        "urllib3.LocationParseError",
        "code",
    ),
    never(
        "urllib3 location",
        lambda: urllib3("LocationValueError", "x"),
        "urllib3.LocationValueError",
        "code",
    ),
    retry(
        "aiohttp 503",
        lambda: aiohttp(503, retry_after="3"),
        "http.status.503",
        "http",
        retry_after=3.0,
    ),
    later(
        "aiohttp 429",
        lambda: aiohttp(429, Retry_After="3"),
        "http.status.429",
        "http",
        retry_after=3.0,
    ),
    never("aiohttp 404", lambda: aiohttp(404), "http.status.404", "http"),
    never(
        "aiohttp content type",
        lambda: aiohttp(200, "ContentTypeError"),
        "aiohttp.ContentTypeError",
        "http",
    ),
    retry(
        "aiohttp content type of a 503",
        lambda: aiohttp(503, "ContentTypeError"),
        "http.status.503",
        "http",
    ),
    never(
        "aiohttp redirects",
        lambda: aiohttp(0, "TooManyRedirects"),
        "aiohttp.TooManyRedirects",
        "http",
    ),
    retry("aiohttp refused", aiohttp_refused, "aiohttp.ClientConnectionError", "network"),
    retry(
        "aiohttp disconnected",
        lambda: aiohttp_error("ServerDisconnectedError"),
        "aiohttp.ServerDisconnectedError",
        "network",
    ),
    retry(
        "aiohttp timeout",
        lambda: aiohttp_error("ServerTimeoutError"),
        "aiohttp.ServerTimeoutError",
        "network",
    ),
    retry(
        "aiohttp payload",
        lambda: aiohttp_error("ClientPayloadError"),
        "aiohttp.ClientPayloadError",
        "network",
    ),
    never("aiohttp url", lambda: aiohttp_error("InvalidURL", "x"), "aiohttp.InvalidURL", "code"),
    never(
        "aiohttp fingerprint",
        lambda: aiohttp_error("ServerFingerprintMismatch", b"", b"", "x", 1),
        "aiohttp.ServerFingerprintMismatch",
        "tls",
    ),
    never(
        "aiohttp certificate",
        lambda: aiohttp_connector(
            "ClientConnectorCertificateError", ssl.SSLCertVerificationError(1, "x")
        ),
        "tls.certificate",
        "tls",
    ),
    retry(
        "aiohttp unix socket",
        lambda: aiohttp_connector("ClientConnectorError", FileNotFoundError(errno.ENOENT, "x")),
        "aiohttp.ClientConnectionError",
        "network",
    ),
]

CASES: list[Case] = [*STATUSES, *CLIENTS]
