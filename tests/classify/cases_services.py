"""Services that say more than an HTTP status."""

from __future__ import annotations

from typing import Any

from tests.classify.case import Case, later, never, retry
from tests.classify.conftest import library


def llm(sdk: str, name: str, status: int, body: object = None, **headers: str) -> BaseException:
    module = library(sdk)
    client = _client(sdk)
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    request = client.Request("POST", "http://x")
    response = client.Response(status, headers=sent, request=request)
    return getattr(module, name)("x", response=response, body=body)  # type: ignore[no-any-return]


def _client(sdk: str) -> Any:
    """The HTTP client that this release of the SDK is built on."""
    has_httpx2 = hasattr(library(f"{sdk}._exceptions"), "httpx2")
    return library("httpx2" if has_httpx2 else "httpx")


def llm_error(sdk: str, name: str) -> BaseException:
    client = _client(sdk)
    return getattr(library(sdk), name)(request=client.Request("POST", "http://x"))  # type: ignore[no-any-return]


def stripe(name: str, status: int | None = None, **more: Any) -> BaseException:
    cls = getattr(library("stripe"), name)
    if name in ("CardError", "InvalidRequestError"):
        more.setdefault("param", None)
        more.setdefault("code", None)
    return cls("x", http_status=status, **more)  # type: ignore[no-any-return]


def slack(error: str | None, status: int = 200, headers: object = None) -> BaseException:
    library("slack_sdk")
    response = library("slack_sdk.web.slack_response").SlackResponse(
        client=None,
        http_verb="POST",
        api_url="http://x",
        req_args={},
        data={"ok": False} if error is None else {"ok": False, "error": error},
        headers=headers or {},
        status_code=status,
    )
    return library("slack_sdk.errors").SlackApiError("x", response)  # type: ignore[no-any-return]


def github(name: str, status: int, **headers: str) -> BaseException:
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    return getattr(library("github"), name)(status, {}, sent)  # type: ignore[no-any-return]


def twilio(status: int, code: int) -> BaseException:
    return library("twilio.base.exceptions").TwilioRestException(status, "/x", "x", code)  # type: ignore[no-any-return]


def elastic(status: int, **headers: str) -> BaseException:
    transport = library("elastic_transport")
    sent = transport.HttpHeaders({k.replace("_", "-"): v for k, v in headers.items()})
    node = transport.NodeConfig("http", "x", 9200)
    meta = transport.ApiResponseMeta(status, "1.1", sent, 0.1, node)
    return library("elasticsearch").ApiError("x", meta, {})  # type: ignore[no-any-return]


def search(module: str, name: str, *args: object) -> BaseException:
    return getattr(library(module), name)(*args)  # type: ignore[no-any-return]


CASES: list[Case] = [
    later(
        "openai 429",
        lambda: llm(
            "openai", "RateLimitError", 429, {"code": "rate_limit_exceeded"}, retry_after_ms="1500"
        ),
        "llm.code.rate_limit_exceeded",
        "http",
        retry_after=1.5,
    ),
    never(
        "openai no credit is a 429",
        lambda: llm("openai", "RateLimitError", 429, {"code": "insufficient_quota"}),
        "llm.code.insufficient_quota",
        "http",
    ),
    never(
        "openai no credit, asked to retry",
        lambda: llm(
            "openai",
            "RateLimitError",
            429,
            {"code": "insufficient_quota", "type": "rate_limit_error"},
            x_should_retry="true",
        ),
        "llm.code.insufficient_quota",
        "http",
    ),
    never(
        "openai no credit, said in the type",
        lambda: llm(
            "openai",
            "RateLimitError",
            429,
            {"code": "rate_limit_exceeded", "type": "insufficient_quota"},
        ),
        "llm.code.insufficient_quota",
        "http",
    ),
    never(
        "openai too long",
        lambda: llm("openai", "BadRequestError", 400, {"code": "context_length_exceeded"}),
        "llm.code.context_length_exceeded",
        "http",
    ),
    never(
        "openai key", lambda: llm("openai", "AuthenticationError", 401), "http.status.401", "http"
    ),
    retry(
        "openai 500",
        lambda: llm("openai", "InternalServerError", 500, {"type": "server_error"}),
        "http.status.500",
        "http",
    ),
    never(
        "openai 500, vetoed",
        lambda: llm(
            "openai", "InternalServerError", 500, {"type": "server_error"}, x_should_retry="false"
        ),
        "http.header.x-should-retry",
        "http",
    ),
    later(
        "openai buckets",
        lambda: llm(
            "openai",
            "RateLimitError",
            429,
            None,
            x_ratelimit_reset_requests="120ms",
            x_ratelimit_reset_tokens="6m0s",
        ),
        "http.status.429",
        "http",
        retry_after=360.0,
    ),
    later(
        "openai dry bucket",
        lambda: llm(
            "openai",
            "RateLimitError",
            429,
            None,
            x_ratelimit_reset_requests="1m30s",
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_tokens="6m0s",
        ),
        "http.status.429",
        "http",
        retry_after=90.0,
    ),
    retry(
        "openai connection",
        lambda: llm_error("openai", "APIConnectionError"),
        "openai.APIConnectionError",
        "network",
    ),
    retry(
        "openai timeout",
        lambda: llm_error("openai", "APITimeoutError"),
        "openai.APITimeoutError",
        "network",
    ),
    later(
        "anthropic overloaded",
        lambda: llm(
            "anthropic", "InternalServerError", 529, {"error": {"type": "overloaded_error"}}
        ),
        "llm.code.overloaded_error",
        "http",
    ),
    later(
        "anthropic overloaded in a stream",
        lambda: llm("anthropic", "APIStatusError", 200, {"error": {"type": "overloaded_error"}}),
        "llm.code.overloaded_error",
        "http",
    ),
    later(
        "anthropic limit",
        lambda: llm(
            "anthropic",
            "RateLimitError",
            429,
            None,
            anthropic_ratelimit_requests_reset="2026-01-01T00:00:30Z",
        ),
        "http.status.429",
        "http",
        retry_after=30.0,
    ),
    never(
        "anthropic spent",
        lambda: llm(
            "anthropic",
            "RateLimitError",
            429,
            {
                "error": {
                    "type": "rate_limit_error",
                    "details": {"error_code": "enforced_spend_limit_reached"},
                }
            },
        ),
        "llm.code.enforced_spend_limit_reached",
        "http",
    ),
    never(
        "anthropic 413", lambda: llm("anthropic", "APIStatusError", 413), "http.status.413", "http"
    ),
    retry(
        "anthropic conflict",
        lambda: llm("anthropic", "ConflictError", 409),
        "http.status.409",
        "http",
    ),
    retry(
        "stripe connection",
        lambda: stripe("APIConnectionError", should_retry=True),
        "stripe.should_retry",
        "network",
    ),
    retry("stripe 500", lambda: stripe("APIError", 500), "http.status.500", "http"),
    retry("stripe 409", lambda: stripe("InvalidRequestError", 409), "http.status.409", "http"),
    later(
        "stripe 429",
        lambda: stripe("RateLimitError", 429, headers={"Retry-After": "2"}),
        "http.status.429",
        "http",
        retry_after=2.0,
    ),
    retry(
        "stripe lock",
        lambda: stripe("RateLimitError", 429, code="lock_timeout"),
        "stripe.code.lock_timeout",
        "http",
    ),
    never(
        "stripe card",
        lambda: stripe("CardError", 402, code="card_declined"),
        "http.status.402",
        "http",
    ),
    never("stripe card, no status", lambda: stripe("CardError"), "stripe.CardError", "http"),
    never(
        "stripe key", lambda: stripe("AuthenticationError"), "stripe.AuthenticationError", "auth"
    ),
    never("stripe permission", lambda: stripe("PermissionError"), "stripe.PermissionError", "auth"),
    never("stripe idempotency", lambda: stripe("IdempotencyError", 400), "http.status.400", "http"),
    later(
        "slack limit, header in a list",
        lambda: slack("ratelimited", 429, {"Retry-After": ["30"]}),
        "slack.error.ratelimited",
        "http",
        retry_after=30.0,
    ),
    later("slack limit with 200", lambda: slack("ratelimited"), "slack.error.ratelimited", "http"),
    retry("slack fatal with 200", lambda: slack("fatal_error"), "slack.error.fatal_error", "http"),
    retry("slack internal", lambda: slack("internal_error"), "slack.error.internal_error", "http"),
    retry("slack 503", lambda: slack(None, 503), "http.status.503", "http"),
    never(
        "slack channel", lambda: slack("channel_not_found"), "slack.error.channel_not_found", "http"
    ),
    never("slack token", lambda: slack("invalid_auth"), "slack.error.invalid_auth", "auth"),
    never("slack anything else", lambda: slack("msg_too_long"), "slack.error.msg_too_long", "http"),
    later(
        "github limit is a 403",
        lambda: github("RateLimitExceededException", 403, x_ratelimit_reset="1767225700"),
        "github.RateLimitExceededException",
        "http",
        retry_after=100.0,
    ),
    later(
        "github secondary limit",
        lambda: github("GithubException", 403, retry_after="60"),
        "http.status.403",
        "http",
        retry_after=60.0,
    ),
    never("github 403", lambda: github("GithubException", 403), "http.status.403", "http"),
    retry(
        "github 502",
        lambda: github("GithubException", 502, x_ratelimit_reset="1767229200"),
        "http.status.502",
        "http",
    ),
    never("github 404", lambda: github("UnknownObjectException", 404), "http.status.404", "http"),
    later("twilio 20429", lambda: twilio(429, 20429), "http.status.429", "http"),
    never("twilio 400", lambda: twilio(400, 21211), "http.status.400", "http"),
    retry("twilio 503", lambda: twilio(503, 20503), "http.status.503", "http"),
    retry("elasticsearch 503", lambda: elastic(503), "http.status.503", "http"),
    later(
        "elasticsearch 429",
        lambda: elastic(429, retry_after="4"),
        "http.status.429",
        "http",
        retry_after=4.0,
    ),
    never("elasticsearch 400", lambda: elastic(400), "http.status.400", "http"),
    retry(
        "elasticsearch connection",
        lambda: search("elasticsearch", "ConnectionError", "x"),
        "elastic_transport.ConnectionError",
        "network",
    ),
    retry(
        "elasticsearch timeout",
        lambda: search("elasticsearch", "ConnectionTimeout", "x"),
        "elastic_transport.ConnectionTimeout",
        "network",
    ),
    never(
        "elasticsearch tls",
        lambda: search("elasticsearch", "SSLError", "x"),
        "elastic_transport.TlsError",
        "tls",
    ),
    never(
        "elasticsearch json",
        lambda: search("elasticsearch", "SerializationError", "x"),
        "elastic_transport.SerializationError",
        "code",
    ),
    retry(
        "opensearch connection",
        lambda: search("opensearchpy", "ConnectionError", "N/A", "x", OSError("x")),
        "opensearchpy.ConnectionError",
        "network",
    ),
    retry(
        "opensearch timeout",
        lambda: search("opensearchpy", "ConnectionTimeout", "TIMEOUT", "x", None),
        "opensearchpy.ConnectionTimeout",
        "network",
    ),
    retry(
        "opensearch 503",
        lambda: search("opensearchpy", "TransportError", 503, "x"),
        "http.status.503",
        "http",
    ),
    never(
        "opensearch 404",
        lambda: search("opensearchpy", "NotFoundError", 404, "x"),
        "http.status.404",
        "http",
    ),
]
