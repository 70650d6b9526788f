"""Clients of services that say more than an HTTP status: in codes of their own."""

from __future__ import annotations

import re

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.http import asked_delay, headers_of
from celery_resilience.classify.reading import entry, number, peek, text
from celery_resilience.classify.retry_after import fold
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["GITHUB", "SEARCH", "SLACK", "STAINLESS", "STRIPE", "TWILIO"]

_NO_CONNECTION = transient("network", "the service could not be reached")
_TIMED_OUT = transient("network", "the service did not answer in time")
_OVERLOADED = limited("http", "rate limited, the service is overloaded")
_NO_MONEY = permanent("http", "the account's quota or credit is used up; check plan and billing")
_REFUSED = permanent("auth", "credentials refused; check the key")

#: ``code``, ``type`` or ``error_code`` of an LLM service's error.
LLM_CODES: dict[object, Finding] = {
    **each(
        _NO_MONEY,
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
    ),
    "account_deactivated": permanent("auth", "the account is deactivated"),
    "context_length_exceeded": permanent(
        "http", "the prompt is too long for the model; shorten it"
    ),
    "overloaded_error": _OVERLOADED,
    **each(limited("http"), "rate_limit_error", "rate_limit_exceeded"),
    **each(
        transient("http", "the service failed"),
        "server_error",
        "api_error",
        "internal_server_error",
    ),
    "timeout_error": _TIMED_OUT,
}


def _read_llm(exception: BaseException, look: Look) -> Verdict | None:
    inner = entry(peek(exception, "body"), "error")
    codes = [
        peek(exception, "code"),
        peek(exception, "error_code"),
        entry(entry(inner, "details"), "error_code"),
        peek(exception, "type"),
        entry(inner, "code"),
        entry(inner, "type"),
    ]
    known = [(code, LLM_CODES[code]) for code in map(text, codes) if code in LLM_CODES]
    # A used-up quota comes as a rate limit with a code beside it: what is final wins.
    known.sort(key=lambda pair: pair[1].kind is not Kind.PERMANENT)
    for code, finding in known:
        if finding.kind is Kind.TRANSIENT and number(peek(exception, "status_code")) is not None:
            return None  # the status knows better, and a veto header may come with it
        headers = headers_of(exception)
        return finding.verdict(f"llm.code.{code}", asked_delay(finding, headers, look))
    return None


STAINLESS = Family(
    name="openai, anthropic and kin",
    roots=frozenset({"openai", "anthropic", "groq", "together", "cerebras"}),
    reads="`code`, `type`, `error_code`, then HTTP status and headers, else class",
    classes={
        "APITimeoutError": _TIMED_OUT,
        "APIConnectionError": _NO_CONNECTION,
        "RetryableError": transient("http", "the client says that a retry is worth while"),
        "WebSocketConnectionClosedError": _NO_CONNECTION,
        "CredentialsError": _REFUSED,
        "LengthFinishReasonError": permanent("http", "the answer did not fit; allow more tokens"),
        "ContentFilterFinishReasonError": permanent(
            "http", "the content filter stopped the answer"
        ),
    },
    codes={"code": LLM_CODES},
    read=_read_llm,
)

_STRIPE_CODES: dict[object, Finding] = {
    "lock_timeout": transient("http", "another request holds the object; try again"),
    "rate_limit": limited("http"),
}


def _read_stripe(exception: BaseException, look: Look) -> Verdict | None:
    code = text(peek(exception, "code"))
    finding = _STRIPE_CODES.get(code)
    if finding is not None:
        return finding.verdict(
            f"stripe.code.{code}", asked_delay(finding, headers_of(exception), look)
        )
    if peek(exception, "should_retry") is True:
        return _NO_CONNECTION.verdict("stripe.should_retry")
    return None


STRIPE = Family(
    name="stripe",
    roots=frozenset({"stripe"}),
    reads="`code`, `should_retry`, `http_status`, `headers`, else class",
    classes={
        "APIConnectionError": _NO_CONNECTION,
        "APIError": transient("http", "Stripe failed"),
        "RateLimitError": limited("http"),
        "CardError": permanent("http", "the card was declined; the customer must act"),
        "InvalidRequestError": permanent("http", "Stripe does not accept these values"),
        "AuthenticationError": _REFUSED,
        "PermissionError": permanent("auth", "this key is not allowed to do that"),
        "IdempotencyError": permanent("http", "the idempotency key was used for something else"),
        "SignatureVerificationError": permanent("auth", "the webhook's signature is not Stripe's"),
    },
    codes={"code": _STRIPE_CODES},
    read=_read_stripe,
)

_SLACK_CODES: dict[object, Finding] = {
    **each(limited("http"), "ratelimited", "rate_limited", "message_limit_exceeded"),
    **each(
        transient("http", "Slack failed"),
        "internal_error",
        "fatal_error",
        "service_unavailable",
        "request_timeout",
        "team_added_to_org",
    ),
    **each(
        permanent("auth", "Slack refused the token; check it and its scopes"),
        "invalid_auth",
        "not_authed",
        "token_revoked",
        "token_expired",
        "account_inactive",
        "missing_scope",
        "no_permission",
    ),
    "channel_not_found": permanent("http", "no such channel; check its id"),
    "not_in_channel": permanent("http", "the bot is not in that channel; invite it"),
    "is_archived": permanent("http", "the channel is archived"),
}


def _read_slack(exception: BaseException, look: Look) -> Verdict | None:
    response = peek(exception, "response")
    code = text(entry(response, "error"))
    status = number(peek(response, "status_code"))
    headers = fold(peek(response, "headers"))
    finding = _SLACK_CODES.get(code)
    if finding is None and status is not None and status >= 300:
        return None  # a plain HTTP error
    if finding is None and code is not None and re.fullmatch(r"[a-z0-9_]{1,60}", code):
        finding = permanent("http", f"Slack says {code}; look it up in the method's documentation")
    if finding is None:
        return None
    return finding.verdict(f"slack.error.{code}", asked_delay(finding, headers, look))


SLACK = Family(
    name="slack_sdk",
    roots=frozenset({"slack_sdk", "slack"}),
    reads='`response["error"]` (errors arrive with HTTP 200), then the HTTP status; every error '
    "that is not listed is permanent",
    classes={
        "SlackClientNotConnectedError": _NO_CONNECTION,
        "SlackRequestError": permanent("code", "the request to Slack is wrong"),
        "SlackObjectFormationError": permanent("code", "that message can't be built"),
        "SlackClientConfigurationError": permanent(
            "code", "the Slack client is configured wrongly"
        ),
        "BotUserAccessError": permanent("auth", "this method takes a user's token, not a bot's"),
    },
    codes={"error": _SLACK_CODES},
    read=_read_slack,
)


def _read_github(exception: BaseException, look: Look) -> Verdict | None:
    limit = limited("http")
    if not any(base.__name__ == "RateLimitExceededException" for base in type(exception).__mro__):
        return None
    return limit.verdict(
        "github.RateLimitExceededException", asked_delay(limit, headers_of(exception), look)
    )


GITHUB = Family(
    name="PyGithub",
    roots=frozenset({"github"}),
    reads="class for rate limits (they come as HTTP 403), then `status` and `headers`",
    classes={
        "RateLimitExceededException": limited("http"),
        "BadCredentialsException": _REFUSED,
        "TwoFactorException": _REFUSED,
        "UnknownObjectException": permanent("http", "there is no such thing on GitHub"),
        "BadAttributeException": permanent("code", "GitHub sent a value of another type"),
        "BadUserAgentException": permanent("http", "GitHub wants another user agent"),
    },
    read=_read_github,
)

TWILIO = Family(
    name="twilio",
    roots=frozenset({"twilio"}),
    reads="`status`; `code` (20429) is Twilio's own",
)


SEARCH = Family(
    name="elasticsearch, opensearch",
    roots=frozenset({"elasticsearch", "elastic_transport", "opensearchpy"}),
    # opensearch puts "N/A" or "TIMEOUT" where the status goes; its class then decides.
    reads="`meta.status`, `meta.headers`, `status_code`, else class",
    classes={
        "ConnectionError": _NO_CONNECTION,
        "ConnectionTimeout": _TIMED_OUT,
        "SniffingError": _NO_CONNECTION,
        **each(permanent("tls", "the encrypted connection was refused"), "TlsError", "SSLError"),
        "SerializationError": permanent("code", "that document can't be written or read as JSON"),
        "UnsupportedProductError": permanent("code", "that server is no Elasticsearch"),
    },
)
