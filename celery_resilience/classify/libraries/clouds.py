"""Amazon's, Google's and Microsoft's clients."""

from __future__ import annotations

import json
from collections.abc import Iterable

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.http import asked_delay, by_status, headers_of
from celery_resilience.classify.libraries.grpc import read_rpc
from celery_resilience.classify.reading import entry, number, peek, text
from celery_resilience.classify.retry_after import fold
from celery_resilience.classify.verdict import Verdict

__all__ = ["AZURE", "BOTOCORE", "GOOGLE", "GOOGLE_CLIENT"]

_NO_CONNECTION = transient("network", "the service could not be reached")
_TIMED_OUT = transient("network", "the service did not answer in time")
_FAILED = transient("http", "AWS failed or asks to try again")
_COLLIDED = transient(
    "http", "it collided with another change; the next attempt sees the new state"
)
_NOT_ALLOWED = permanent("auth", "AWS does not allow this; check the policy of the role")
_EXPIRED = permanent("auth", "AWS refused the credentials; renew or check them")
_BAD_VALUES = permanent("http", "AWS does not accept these values; check what the task sent")

#: ``response["Error"]["Code"]``; what is not listed goes by the HTTP status.
AWS_CODES: dict[object, Finding] = {
    **each(
        limited("http"),
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "SlowDown",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "TransactionInProgressException",
    ),
    **each(
        _FAILED,
        "RequestTimeout",
        "RequestTimeoutException",
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "InternalServiceError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    ),
    **each(
        _COLLIDED,
        "TransactionConflictException",
        "ConcurrentModificationException",
        "OperationAborted",
    ),
    **each(
        _EXPIRED,
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    ),
    "UnauthorizedOperation": _NOT_ALLOWED,
    "ConditionalCheckFailedException": permanent("http", "the condition does not hold"),
    "ConditionalCheckFailed": permanent("http", "the condition does not hold"),
}
_AWS_PREFIXES: dict[object, Finding] = {
    "AccessDenied": _NOT_ALLOWED,
    "NoSuch": permanent("http", "there is no such thing; check names and region"),
    "Validation": _BAD_VALUES,
}


def _read_aws(exception: BaseException, look: Look) -> Verdict | None:
    response = peek(exception, "response")  # a dict, unlike those of other libraries
    code = (text(entry(entry(response, "Error"), "Code")) or "").rpartition("#")[2]
    metadata = entry(response, "ResponseMetadata")
    headers = fold(entry(metadata, "HTTPHeaders"))
    finding = AWS_CODES.get(code)
    if finding is None:
        prefixes = (prefix for prefix in _AWS_PREFIXES if code.startswith(str(prefix)))
        finding = _AWS_PREFIXES.get(next(prefixes, None))
    if finding is not None:
        return finding.verdict(f"botocore.code.{code}", asked_delay(finding, headers, look))
    status = number(entry(metadata, "HTTPStatusCode"))
    if status is None and code.isdecimal():  # a HEAD has no body: S3 puts the status there
        status = int(code[:4])
    return None if status is None else by_status(status, headers, look)


BOTOCORE = Family(
    name="botocore",
    roots=frozenset({"botocore", "boto3", "s3transfer", "aiobotocore"}),
    reads='`response["Error"]["Code"]`, then the HTTP status in `response`; else class',
    classes={
        **each(_NO_CONNECTION, "ConnectionError", "HTTPClientError"),
        **each(_TIMED_OUT, "ConnectTimeoutError", "ReadTimeoutError"),
        **each(
            transient("network", "the connection broke in the middle of an answer"),
            "ConnectionClosedError",
            "IncompleteReadError",
            "ResponseStreamingError",
        ),
        **each(
            permanent("auth", "no usable AWS credentials on this worker"),
            "NoCredentialsError",
            "PartialCredentialsError",
        ),
        "ParamValidationError": permanent("code", "the arguments of the AWS call are wrong"),
        "BotoCoreError": permanent("code", "the AWS client is used or configured wrongly"),
    },
    codes={"code": AWS_CODES, "code prefix": _AWS_PREFIXES},
    read=_read_aws,
    http=False,
)


def _google_cause(exception: BaseException) -> Iterable[object]:
    if any(base.__name__ == "RetryError" for base in type(exception).__mro__):
        yield peek(exception, "cause")


GOOGLE = Family(
    name="google.api_core",
    roots=frozenset({"google"}),
    reads="`grpc_status_code`, `code`, `cause` of RetryError; `retry_delay` in `details`",
    inner=_google_cause,
    read=read_rpc,
    classes={
        "RetryError": transient("network", "every attempt of the client's own retries failed"),
        "TransportError": _NO_CONNECTION,
        "RefreshError": permanent("auth", "Google refused to renew the credentials; check them"),
        "DefaultCredentialsError": permanent("auth", "no usable Google credentials on this worker"),
        "DuplicateCredentialArgs": permanent("code", "credentials are given twice"),
    },
)

_GOOGLE_REASONS: dict[object, Finding] = {
    **each(limited("http"), "rateLimitExceeded", "userRateLimitExceeded"),
    **each(
        permanent("http", "the quota is used up; raise it or come back another day"),
        "dailyLimitExceeded",
        "quotaExceeded",
    ),
}
_BODY = 100_000  # an error's body; whatever is longer is something else


def _read_google_client(exception: BaseException, look: Look) -> Verdict | None:
    if number(peek(exception, "status_code")) != 403:
        return None
    content = peek(exception, "content")
    if not isinstance(content, bytes) or len(content) > _BODY:
        return None
    error = entry(json.loads(content), "error")
    reasons = [text(entry(one, "reason")) for one in _items(entry(error, "errors"))]
    for reason in reasons:
        finding = _GOOGLE_REASONS.get(reason)
        if finding is not None:
            delay = asked_delay(finding, headers_of(exception), look)
            return finding.verdict(f"google.reason.{reason}", delay)
    return None


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


GOOGLE_CLIENT = Family(
    name="googleapiclient",
    roots=frozenset({"googleapiclient"}),
    reads="`status_code`; for 403 the `reason` in `content`; `resp` for headers",
    codes={"reason": _GOOGLE_REASONS},
    read=_read_google_client,
)

AZURE = Family(
    name="azure.core",
    roots=frozenset({"azure"}),
    reads="`status_code`, `response.headers`, else class",
    classes={
        **each(_NO_CONNECTION, "ServiceRequestError", "ServiceResponseError"),
        **each(_TIMED_OUT, "ServiceRequestTimeoutError", "ServiceResponseTimeoutError"),
        "IncompleteReadError": transient("network", "the connection broke in the middle"),
        "ClientAuthenticationError": permanent("auth", "Azure refused the credentials; check them"),
        "ResourceNotFoundError": permanent("http", "there is no such thing in Azure"),
        "ResourceExistsError": permanent("http", "it exists in Azure already"),
        "ResourceModifiedError": permanent("http", "it was changed in Azure meanwhile"),
        "ResourceNotModifiedError": permanent("http", "it was not changed in Azure"),
        "DecodeError": permanent("code", "the answer of Azure can't be read"),
        "TooManyRedirectsError": permanent("http", "redirected too often; check the address"),
        **each(
            permanent("code", "a value can't be written or read"),
            "SerializationError",
            "DeserializationError",
        ),
    },
)
