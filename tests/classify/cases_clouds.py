"""Amazon, Google, Microsoft and gRPC."""

from __future__ import annotations

import json

from tests.classify.case import Case, later, never, raised, retry
from tests.classify.conftest import library


def botocore(code: str, status: int, **headers: str) -> BaseException:
    metadata = {
        "HTTPStatusCode": status,
        "HTTPHeaders": {k.replace("_", "-"): v for k, v in headers.items()},
    }
    response = {"Error": {"Code": code, "Message": "x"}, "ResponseMetadata": metadata}
    return library("botocore.exceptions").ClientError(response, "GetObject")  # type: ignore[no-any-return]


def botocore_error(name: str, **given: object) -> BaseException:
    return getattr(library("botocore.exceptions"), name)(**given)  # type: ignore[no-any-return]


def google(name: str, **more: object) -> BaseException:
    library("grpc")
    return getattr(library("google.api_core.exceptions"), name)("x", **more)  # type: ignore[no-any-return]


def google_retry_info() -> BaseException:
    details = library("google.rpc.error_details_pb2")
    info = details.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 7, 500_000_000
    return google("ResourceExhausted", details=[details.ErrorInfo(reason="x"), info])


def google_gave_up(cause: BaseException) -> BaseException:
    return library("google.api_core.exceptions").RetryError("x", cause)  # type: ignore[no-any-return]


def google_client(status: int, reason: str = "x", **headers: str) -> BaseException:
    answer = library("httplib2").Response(
        {"status": str(status), **{k.replace("_", "-"): v for k, v in headers.items()}}
    )
    answer.reason = "x"
    content = json.dumps({"error": {"message": "x", "errors": [{"reason": reason}]}}).encode()
    return library("googleapiclient.errors").HttpError(answer, content)  # type: ignore[no-any-return]


def grpc(code: str, metadata: tuple[tuple[str, object], ...] = ()) -> BaseException:
    status = getattr(library("grpc").StatusCode, code)
    aio = library("grpc.aio")
    return aio.AioRpcError(status, aio.Metadata(), aio.Metadata(*metadata))  # type: ignore[no-any-return]


def grpc_retry_info() -> BaseException:
    details = library("google.rpc.error_details_pb2")
    status = library("google.rpc.status_pb2").Status(code=8, message="x")
    status.details.add().Pack(details.ErrorInfo(reason="x"))
    info = details.RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = 90, 250_000_000
    status.details.add().Pack(info)
    return grpc("RESOURCE_EXHAUSTED", (("grpc-status-details-bin", status.SerializeToString()),))


def grpc_refused() -> BaseException:
    module = library("grpc")
    with module.insecure_channel("127.0.0.1:9") as channel:
        return raised(lambda: channel.unary_unary("/x.Y/Z")(b"", timeout=5))


def azure(name: str, status: int | None = None, **headers: str) -> BaseException:
    cls = getattr(library("azure.core.exceptions"), name)
    if status is None:
        return cls("x")  # type: ignore[no-any-return]

    class Answer:
        status_code = status
        reason = "x"
        headers: dict[str, str] = {}  # noqa: RUF012

        def text(self, encoding: str | None = None) -> str:
            return ""

        content_type = "text/plain"

    Answer.headers = {k.replace("_", "-"): v for k, v in headers.items()}
    return cls(message="x", response=Answer())  # type: ignore[no-any-return]


CASES: list[Case] = [
    *(
        later(f"aws {c}", lambda c=c: botocore(c, 400), f"botocore.code.{c}", "http")
        for c in (
            "Throttling",
            "ThrottlingException",
            "RequestThrottled",
            "TooManyRequestsException",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "LimitExceededException",
            "SlowDown",
            "EC2ThrottledException",
            "PriorRequestNotComplete",
            "TransactionInProgressException",
        )
    ),  # type: ignore[misc]
    *(
        retry(f"aws {c}", lambda c=c: botocore(c, 400), f"botocore.code.{c}", "http")
        for c in (
            "RequestTimeout",
            "RequestTimeoutException",
            "InternalError",
            "InternalFailure",
            "ServiceUnavailable",
            "TransactionConflictException",
            "ConcurrentModificationException",
            "OperationAborted",
        )
    ),  # type: ignore[misc]
    *(
        never(f"aws {c}", lambda c=c: botocore(c, 400), f"botocore.code.{c}", category)
        for c, category in [
            ("AccessDenied", "auth"),
            ("AccessDeniedException", "auth"),
            ("NoSuchKey", "http"),
            ("NoSuchBucket", "http"),
            ("ValidationException", "http"),
            ("ConditionalCheckFailedException", "http"),
            ("ExpiredToken", "auth"),
        ]
    ),  # type: ignore[misc]
    retry("aws unknown code, 503", lambda: botocore("Mystery", 503), "http.status.503", "http"),
    never("aws unknown code, 400", lambda: botocore("Mystery", 400), "http.status.400", "http"),
    later(
        "aws unknown code, 429",
        lambda: botocore("Mystery", 429, retry_after="3"),
        "http.status.429",
        "http",
        retry_after=3.0,
    ),
    later(
        "aws milliseconds",
        lambda: botocore("SlowDown", 503, x_amz_retry_after="2500"),
        "botocore.code.SlowDown",
        "http",
        retry_after=2.5,
    ),
    never("aws HEAD 404", lambda: botocore("404", 404), "http.status.404", "http"),
    retry(
        "aws endpoint",
        lambda: botocore_error("EndpointConnectionError", endpoint_url="x"),
        "botocore.ConnectionError",
        "network",
    ),
    retry(
        "aws read timeout",
        lambda: botocore_error("ReadTimeoutError", endpoint_url="x"),
        "botocore.ReadTimeoutError",
        "network",
    ),
    retry(
        "aws closed",
        lambda: botocore_error("ConnectionClosedError", endpoint_url="x"),
        "botocore.ConnectionClosedError",
        "network",
    ),
    retry(
        "aws incomplete",
        lambda: botocore_error("IncompleteReadError", actual_bytes=1, expected_bytes=2),
        "botocore.IncompleteReadError",
        "network",
    ),
    never(
        "aws no credentials",
        lambda: botocore_error("NoCredentialsError"),
        "botocore.NoCredentialsError",
        "auth",
    ),
    never(
        "aws parameters",
        lambda: botocore_error("ParamValidationError", report="x"),
        "botocore.ParamValidationError",
        "code",
    ),
    never(
        "aws no region", lambda: botocore_error("NoRegionError"), "botocore.BotoCoreError", "code"
    ),
    *(
        retry(f"grpc {c}", lambda c=c: grpc(c), f"grpc.{c}", category)
        for c, category in [
            ("UNAVAILABLE", "network"),
            ("ABORTED", "http"),
            ("DEADLINE_EXCEEDED", "network"),
            ("INTERNAL", "http"),
            ("UNKNOWN", "http"),
            ("CANCELLED", "network"),
        ]
    ),  # type: ignore[misc]
    *(
        never(f"grpc {c}", lambda c=c: grpc(c), f"grpc.{c}", category)
        for c, category in [
            ("INVALID_ARGUMENT", "http"),
            ("NOT_FOUND", "http"),
            ("ALREADY_EXISTS", "http"),
            ("PERMISSION_DENIED", "auth"),
            ("UNAUTHENTICATED", "auth"),
            ("FAILED_PRECONDITION", "http"),
            ("OUT_OF_RANGE", "http"),
            ("UNIMPLEMENTED", "http"),
            ("DATA_LOSS", "http"),
        ]
    ),  # type: ignore[misc]
    later("grpc exhausted", lambda: grpc("RESOURCE_EXHAUSTED"), "grpc.RESOURCE_EXHAUSTED", "http"),
    later(
        "grpc pushback",
        lambda: grpc("RESOURCE_EXHAUSTED", (("grpc-retry-pushback-ms", "1500"),)),
        "grpc.RESOURCE_EXHAUSTED",
        "http",
        retry_after=1.5,
    ),
    later("grpc retry info", grpc_retry_info, "grpc.RESOURCE_EXHAUSTED", "http", retry_after=90.25),
    retry("grpc refused, for real", grpc_refused, "grpc.UNAVAILABLE", "network"),
    later(
        "google exhausted", google_retry_info, "grpc.RESOURCE_EXHAUSTED", "http", retry_after=7.5
    ),
    later("google 429", lambda: google("TooManyRequests"), "http.status.429", "http"),
    retry(
        "google unavailable", lambda: google("ServiceUnavailable"), "grpc.UNAVAILABLE", "network"
    ),
    retry("google 502", lambda: google("BadGateway"), "http.status.502", "http"),
    never("google forbidden", lambda: google("Forbidden"), "http.status.403", "http"),
    never("google not found", lambda: google("NotFound"), "grpc.NOT_FOUND", "http"),
    retry(
        "google gave up",
        lambda: google_gave_up(google("ServiceUnavailable")),
        "grpc.UNAVAILABLE",
        "network",
    ),
    never(
        "google gave up on a refusal",
        lambda: google_gave_up(google("PermissionDenied")),
        "grpc.PERMISSION_DENIED",
        "auth",
    ),
    later(
        "google client 403 too fast",
        lambda: google_client(403, "rateLimitExceeded"),
        "google.reason.rateLimitExceeded",
        "http",
    ),
    later(
        "google client 403 user too fast",
        lambda: google_client(403, "userRateLimitExceeded", retry_after="8"),
        "google.reason.userRateLimitExceeded",
        "http",
        retry_after=8.0,
    ),
    never(
        "google client 403 quota",
        lambda: google_client(403, "dailyLimitExceeded"),
        "google.reason.dailyLimitExceeded",
        "http",
    ),
    never("google client 403", lambda: google_client(403, "forbidden"), "http.status.403", "http"),
    retry(
        "google client 503",
        lambda: google_client(503, retry_after="5"),
        "http.status.503",
        "http",
        retry_after=5.0,
    ),
    later(
        "google client 429",
        lambda: google_client(429, retry_after="5"),
        "http.status.429",
        "http",
        retry_after=5.0,
    ),
    retry(
        "azure 503",
        lambda: azure("HttpResponseError", 503, x_ms_retry_after_ms="250"),
        "http.status.503",
        "http",
        retry_after=0.25,
    ),
    later(
        "azure 429",
        lambda: azure("HttpResponseError", 429, retry_after_ms="1250"),
        "http.status.429",
        "http",
        retry_after=1.25,
    ),
    retry("azure 408", lambda: azure("HttpResponseError", 408), "http.status.408", "http"),
    retry(
        "azure request",
        lambda: azure("ServiceRequestError"),
        "azure.ServiceRequestError",
        "network",
    ),
    retry(
        "azure response",
        lambda: azure("ServiceResponseError"),
        "azure.ServiceResponseError",
        "network",
    ),
    retry(
        "azure incomplete",
        lambda: azure("IncompleteReadError", 200),
        "azure.IncompleteReadError",
        "network",
    ),
    never(
        "azure login",
        lambda: azure("ClientAuthenticationError"),
        "azure.ClientAuthenticationError",
        "auth",
    ),
    never(
        "azure not found", lambda: azure("ResourceNotFoundError", 404), "http.status.404", "http"
    ),
    never(
        "azure exists", lambda: azure("ResourceExistsError"), "azure.ResourceExistsError", "http"
    ),
    never("azure decode", lambda: azure("DecodeError"), "azure.DecodeError", "code"),
]
