"""Message brokers and streams, and SSH."""

from __future__ import annotations

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, permanent, transient
from celery_resilience.classify.reading import arguments, called, lineage, number, peek, text
from celery_resilience.classify.verdict import Verdict

__all__ = ["AMQP", "CONFLUENT", "KAFKA", "KOMBU", "PARAMIKO"]

_LOST = transient("broker", "the connection to the broker failed or was lost")
_REFUSED = permanent("broker", "the broker refuses that for good")

#: AMQP reply codes; those that look like HTTP statuses are none.
REPLY_CODES: dict[object, Finding] = {
    313: transient("broker", "it has no consumers"),
    320: transient("broker", "the broker closed the connection"),
    405: transient("broker", "another connection has the queue to itself"),
    506: transient("broker", "the broker is short of something, memory or disk perhaps"),
    311: permanent("broker", "the message is too large for the broker"),
    402: permanent("broker", "no such virtual host; check the broker's URL"),
    403: permanent("auth", "the broker refused the credentials or the right to do this"),
    404: permanent("broker", "no such exchange or queue; declare it or check its name"),
    406: permanent("broker", "it was declared with other arguments; check its declaration"),
    **each(_REFUSED, 501, 502, 503, 504, 505, 530, 540, 541),
}


def _read_amqp(exception: BaseException, look: Look) -> Verdict | None:
    code = number(peek(exception, "reply_code"))
    finding = REPLY_CODES.get(code)
    return None if finding is None else finding.verdict(f"amqp.code.{code}")


AMQP = Family(
    name="amqp",
    roots=frozenset({"amqp"}),
    reads="`reply_code`, else class",
    classes={
        **each(_LOST, "ConnectionError", "RecoverableConnectionError", "RecoverableChannelError"),
        "MessageNacked": transient("broker", "the broker did not take the message"),
        **each(_REFUSED, "IrrecoverableConnectionError", "IrrecoverableChannelError"),
        "ContentTooLarge": REPLY_CODES[311],
    },
    codes={"code": REPLY_CODES},
    read=_read_amqp,
    http=False,
)

KOMBU = Family(
    name="kombu",
    roots=frozenset({"kombu"}),
    reads="class",
    http=False,
    classes={
        **each(_LOST, "OperationalError", "LimitExceeded"),
        "EncodeError": permanent("code", "the message can't be serialised; check its arguments"),
        "DecodeError": permanent("code", "the message can't be deserialised"),
        "ContentDisallowed": permanent("code", "accept_content does not allow this content type"),
        "SerializerNotInstalled": permanent("code", "the serialiser is not installed here"),
        "NotBoundError": permanent("code", "a queue or an exchange is used without a channel"),
    },
)

_KAFKA_AGAIN = transient("broker", "Kafka says that it can be tried again")
_KAFKA_NEVER = permanent("broker", "Kafka says that no retry can help; see its error")
_FLAG: dict[object, Finding] = {True: _KAFKA_AGAIN, False: _KAFKA_NEVER}


def _read_kafka(exception: BaseException, look: Look) -> Verdict | None:
    # Its `errno` is Kafka's own code, 6 being a partition without a leader.
    if any(name in _KAFKA_CLASSES for _, name in lineage(type(exception))):
        return None
    flag = peek(exception, "retriable")
    if type(flag) is not bool:
        return None
    return _FLAG[flag].verdict(f"kafka.{type(exception).__name__}")


#: Not flagged as retriable: the client does not retry them, a task can.
_KAFKA_CLASSES = {
    "BrokerNotAvailableError": transient("broker", "the Kafka broker is not there"),
    "RebalanceInProgressError": transient("broker", "the consumer group is being rebalanced"),
}

KAFKA = Family(
    name="kafka-python",
    roots=frozenset({"kafka", "aiokafka"}),
    reads="`retriable`, else class",
    classes=_KAFKA_CLASSES,
    codes={"retriable": _FLAG},
    read=_read_kafka,
    http=False,
)

_KAFKA_DOWN = transient("broker", "no Kafka broker could be reached, or none in time")
_NO_LEADER = transient("broker", "the partition is changing its leader")

#: librdkafka flags only transactions as retriable: a broker that is down is flagged False.
KAFKA_NAMES: dict[object, Finding] = {
    **each(
        _KAFKA_DOWN,
        "_TRANSPORT",
        "_ALL_BROKERS_DOWN",
        "_TIMED_OUT",
        "_TIMED_OUT_QUEUE",
        "_MSG_TIMED_OUT",
        "_RESOLVE",
        "_WAIT_COORD",
        "_WAIT_CACHE",
        "_RETRY",
        "BROKER_NOT_AVAILABLE",
        "NETWORK_EXCEPTION",
        "REQUEST_TIMED_OUT",
    ),
    **each(
        _NO_LEADER,
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
        "NOT_ENOUGH_REPLICAS",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
    ),
    "_QUEUE_FULL": transient("broker", "the producer's own queue is full"),
    **each(
        transient("broker", "the coordinator of the group is changing"),
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "NOT_COORDINATOR",
        "REBALANCE_IN_PROGRESS",
    ),
}


def _read_confluent(exception: BaseException, look: Look) -> Verdict | None:
    given = arguments(exception)
    error = given[0] if given else None
    flag, name = called(error, "retriable"), text(called(error, "name"))
    if name in KAFKA_NAMES:
        return KAFKA_NAMES[name].verdict(f"confluent_kafka.{name}")
    if type(flag) is not bool:
        return None
    return _FLAG[flag].verdict(f"confluent_kafka.{name or 'retriable'}")


CONFLUENT = Family(
    name="confluent-kafka",
    roots=frozenset({"confluent_kafka", "cimpl"}),
    reads="`args[0].name()`, then `args[0].retriable()`",
    codes={"name": KAFKA_NAMES, "retriable": _FLAG},
    read=_read_confluent,
    http=False,
)

PARAMIKO = Family(
    name="paramiko",
    roots=frozenset({"paramiko"}),
    reads="class",
    http=False,
    classes={
        **each(
            transient("network", "the SSH connection failed or was lost"),
            "SSHException",
            "NoValidConnectionsError",
        ),
        "AuthenticationException": permanent("auth", "the SSH server refused key or password"),
        "BadHostKeyException": permanent(
            "auth", "the host key is not the one known; check who it is"
        ),
        "UnknownKeyType": permanent("code", "that SSH key is of an unknown type"),
    },
)
