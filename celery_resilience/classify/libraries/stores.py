"""Redis, Valkey and MongoDB."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.reading import arguments, called, entry, lineage, number, peek, text
from celery_resilience.classify.verdict import Verdict

__all__ = ["MONGO", "REDIS"]

_NO_CONNECTION = transient("database", "the connection to Redis failed or was lost")
_FAILING_OVER = transient("database", "Redis is starting or failing over")
_MOVING = transient("database", "the cluster is moving this key")
_NO_MEMORY = transient("database", "Redis is out of memory; raise maxmemory or delete something")
_NO_LOGIN = permanent("auth", "Redis refused user or password, or the right to do this; check both")
_BUSY = transient("database", "Redis is busy with a script")

#: The first word of a reply for which the client has no class of its own.
REPLIES: dict[object, Finding] = {
    "MISCONF": transient("database", "Redis can't write its snapshot to disk; see its log"),
    "NOREPLICAS": transient("database", "Redis has too few replicas to write to"),
    **each(_FAILING_OVER, "LOADING", "MASTERDOWN", "READONLY", "UNBLOCKED"),
    **each(_MOVING, "CLUSTERDOWN", "TRYAGAIN"),
    "BUSY": _BUSY,
    "OOM": _NO_MEMORY,
    **each(_NO_LOGIN, "NOAUTH", "WRONGPASS", "NOPERM"),
}
#: ``error_type`` of redis-py 7 and later, for classes that are not listed.
ERROR_TYPES: dict[object, Finding] = {"auth": _NO_LOGIN, "network": _NO_CONNECTION}

_REDIS = {
    **each(_NO_CONNECTION, "ConnectionError", "InvalidResponse", "PubSubError"),
    "TimeoutError": transient("database", "Redis did not answer in time"),
    **each(_FAILING_OVER, "BusyLoadingError", "ReadOnlyError", "MasterDownError"),
    **each(_MOVING, "ClusterDownError", "TryAgainError", "AskError", "MovedError", "ClusterError"),
    "SlotNotCoveredError": _MOVING,
    "MaxConnectionsError": transient("database", "no connection to Redis is free"),
    "OutOfMemoryError": _NO_MEMORY,
    "WatchError": transient("database", "the watched key was changed by another client"),
    "LockError": transient("database", "the lock is held by another client, or was lost"),
    # Both derive from ConnectionError, and no retry fixes them.
    **each(_NO_LOGIN, "AuthenticationError", "AuthorizationError", "NoPermissionError"),
    "ResponseError": permanent("database", "Redis does not accept that command; see its message"),
    "DataError": permanent("code", "that value can't be sent to Redis"),
    "NoScriptError": permanent("database", "Redis does not know that script; load it"),
    **each(
        permanent("database", "the keys are on different nodes; use one hash tag for them"),
        "ClusterCrossSlotError",
        "CrossSlotTransactionError",
    ),
}


def _read_redis(exception: BaseException, look: Look) -> Verdict | None:
    given = arguments(exception)
    nearest = next((name for _, name in lineage(type(exception)) if name in _REDIS), None)
    if nearest == "ResponseError":
        words = (text(given[0]) or "").split(None, 1) if given else []
        finding = REPLIES.get(words[0]) if words else None
        return None if finding is None else finding.verdict(f"redis.reply.{words[0]}")
    kind = text(peek(peek(exception, "error_type"), "value"))
    if not (nearest is None or (nearest == "ConnectionError" and kind == "auth")):
        return None
    finding = ERROR_TYPES.get(kind)
    return None if finding is None else finding.verdict(f"redis.error_type.{kind}")


REDIS = Family(
    name="redis, valkey",
    roots=frozenset({"redis", "valkey", "aioredis"}),
    reads="class; the first word of a ResponseError; `error_type` of classes that are not listed",
    classes=_REDIS,
    codes={"reply": REPLIES, "error_type": ERROR_TYPES},
    read=_read_redis,
    http=False,
)

_AGAIN = transient("database", "MongoDB says that it can be tried again")
_MONGO_DOWN = transient("database", "the MongoDB server is not there, or is changing its role")
_SLOW = transient("database", "MongoDB did not get done in time")

#: Labels that the server or the driver hangs on an error; asked in this order.
LABELS: dict[object, Finding] = {
    "SystemOverloadedError": limited("database", "MongoDB is overloaded"),
    **each(_AGAIN, "TransientTransactionError", "RetryableWriteError", "RetryableError"),
}
MONGO_CODES: dict[object, Finding] = {
    **each(_MONGO_DOWN, 6, 7, 89, 91, 134, 189, 9001, 10107, 11600, 11602, 13435, 13436),
    24: transient("database", "a lock in MongoDB was not free in time"),
    **each(_SLOW, 50, 262),
    112: transient("database", "it collided with another write"),
    **each(permanent("database", "such a document exists already"), 11000, 11001),
    **each(permanent("auth", "MongoDB refused the credentials or the right to do this"), 13, 18),
    121: permanent("database", "the document does not pass the collection's validation"),
    **each(permanent("database", "MongoDB does not accept that command"), 2, 9, 59),
}
_MOST = 1000  # write errors looked at


def _read_mongo(exception: BaseException, look: Look) -> Verdict | None:
    for label, finding in LABELS.items():
        if called(exception, "has_error_label", label) is True:
            return finding.verdict(f"pymongo.label.{label}")
    code = number(peek(exception, "code"))
    finding = MONGO_CODES.get(code)  # type: ignore[assignment]
    if finding is not None:
        return finding.verdict(f"pymongo.code.{code}")
    return _bulk(exception)


def _bulk(exception: BaseException) -> Verdict | None:
    """A bulk write that failed: one write that can't succeed means that the batch can't."""
    errors = entry(peek(exception, "details"), "writeErrors")
    if not isinstance(errors, Iterable):
        return None
    codes = [number(entry(error, "code")) for error in islice(errors, _MOST)]
    known = [(code, MONGO_CODES[code]) for code in codes if code in MONGO_CODES]
    known.sort(key=lambda pair: pair[1].kind.value)  # permanent, rate_limited, transient
    return known[0][1].verdict(f"pymongo.code.{known[0][0]}") if known else None


MONGO = Family(
    name="pymongo",
    roots=frozenset({"pymongo", "bson", "gridfs", "motor"}),
    reads="`has_error_label()`, `code`, the codes of a bulk write, else class",
    classes={
        "ConnectionFailure": _MONGO_DOWN,
        "NetworkTimeout": _SLOW,
        "ServerSelectionTimeoutError": transient("database", "no MongoDB server could be reached"),
        "WaitQueueTimeoutError": transient("database", "no connection of the pool became free"),
        "ExecutionTimeout": _SLOW,
        "WTimeoutError": _SLOW,
        "CursorNotFound": transient("database", "the cursor is gone; the query must start again"),
        "ProtocolError": transient("database", "the answer of MongoDB was damaged"),
        "DuplicateKeyError": permanent("database", "such a document exists already"),
        "ConfigurationError": permanent("code", "the MongoDB client is configured wrongly"),
        "BSONError": permanent("code", "that document can't be written as BSON"),
        **each(
            permanent("code", "the MongoDB client is used wrongly"),
            "InvalidName",
            "InvalidOperation",
            "CollectionInvalid",
        ),
    },
    codes={"label": LABELS, "code": MONGO_CODES},
    read=_read_mongo,
    http=False,
)
