"""Databases, stores and brokers."""

from __future__ import annotations

from typing import Any

from tests.classify.case import Case, chained, later, never, raised, retry
from tests.classify.conftest import library


def redis(name: str, *args: object, client: str = "redis") -> BaseException:
    return getattr(library(f"{client}.exceptions"), name)(*(args or ("x",)))  # type: ignore[no-any-return]


def psycopg(code: str) -> BaseException:
    errors = library("psycopg.errors")
    return errors.lookup(code)("x")  # type: ignore[no-any-return]


def psycopg_error(name: str) -> BaseException:
    return getattr(library("psycopg"), name)("x")  # type: ignore[no-any-return]


def psycopg_refused() -> BaseException:
    connect = library("psycopg").connect
    return raised(lambda: connect("host=127.0.0.1 port=9 connect_timeout=2"))


def psycopg2(name: str) -> BaseException:
    error = getattr(library("psycopg2.errors"), name)("x")
    assert error.pgcode is None, "it has a code only if it came over a connection"
    return error  # type: ignore[no-any-return]


def asyncpg(name: str) -> BaseException:
    return getattr(library("asyncpg"), name)("x")  # type: ignore[no-any-return]


def sqlalchemy(name: str, orig: BaseException | None = None, **more: Any) -> BaseException:
    return getattr(library("sqlalchemy.exc"), name)("select 1", {}, orig or Exception("x"), **more)  # type: ignore[no-any-return]


def sqlalchemy_no_table() -> BaseException:
    module = library("sqlalchemy")
    engine = module.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            return raised(lambda: connection.execute(module.text("select * from nothing")))
    finally:
        engine.dispose()


def django(name: str, cause: BaseException | None = None) -> BaseException:
    error = getattr(library("django.db.utils"), name)("x")
    return error if cause is None else chained(error, cause)


def mysql(name: str, *args: object, driver: str = "pymysql.err") -> BaseException:
    return getattr(library(driver), name)(*args)  # type: ignore[no-any-return]


def connector(code: int, name: str = "OperationalError") -> BaseException:
    return getattr(library("mysql.connector.errors"), name)("x", errno=code)  # type: ignore[no-any-return]


def mongo(name: str, *args: object, **more: object) -> BaseException:
    return getattr(library("pymongo.errors"), name)(*(args or ("x",)), **more)  # type: ignore[no-any-return]


def labelled(label: str) -> BaseException:
    return mongo("OperationFailure", "x", 9999, {"errorLabels": [label]})


def amqp(name: str, *args: object, **more: object) -> BaseException:
    return getattr(library("amqp.exceptions"), name)(*(args or ("x",)), **more)  # type: ignore[no-any-return]


def kombu(name: str) -> BaseException:
    return getattr(library("kombu.exceptions"), name)("x")  # type: ignore[no-any-return]


def kafka(name: str) -> BaseException:
    return getattr(library("kafka.errors"), name)("x")  # type: ignore[no-any-return]


def confluent(code: str, retriable: bool = False) -> BaseException:
    module = library("confluent_kafka")
    error = module.KafkaError(getattr(module.KafkaError, code), "x", False, retriable)
    return module.KafkaException(error)  # type: ignore[no-any-return]


def paramiko(name: str, *args: object) -> BaseException:
    return getattr(library("paramiko.ssh_exception"), name)(*(args or ("x",)))  # type: ignore[no-any-return]


REDIS = [
    *(
        retry(f"redis {n}", lambda n=n: redis(n), f"redis.{n}", "database")
        for n in (
            "ConnectionError",
            "TimeoutError",
            "BusyLoadingError",
            "MaxConnectionsError",
            "ReadOnlyError",
            "OutOfMemoryError",
            "TryAgainError",
            "MasterDownError",
            "WatchError",
            "LockError",
        )
    ),  # type: ignore[misc]
    retry(
        "redis cluster down",
        lambda: redis("ClusterDownError", "CLUSTERDOWN x"),
        "redis.ClusterDownError",
        "database",
    ),
    retry(
        "redis moved", lambda: redis("MovedError", "1 127.0.0.1:1"), "redis.MovedError", "database"
    ),
    retry("redis ask", lambda: redis("AskError", "1 127.0.0.1:1"), "redis.AskError", "database"),
    retry("redis lock lost", lambda: redis("LockNotOwnedError"), "redis.LockError", "database"),
    never(
        "redis login is a connection error",
        lambda: redis("AuthenticationError"),
        "redis.AuthenticationError",
        "auth",
    ),
    never(
        "redis right is a connection error",
        lambda: redis("AuthorizationError"),
        "redis.AuthorizationError",
        "auth",
    ),
    never(
        "redis permission", lambda: redis("NoPermissionError"), "redis.NoPermissionError", "auth"
    ),
    never(
        "redis command",
        lambda: redis("ResponseError", "ERR unknown command"),
        "redis.ResponseError",
        "database",
    ),
    never("redis data", lambda: redis("DataError"), "redis.DataError", "code"),
    never("redis script", lambda: redis("NoScriptError"), "redis.NoScriptError", "database"),
    never(
        "redis slots",
        lambda: redis("ClusterCrossSlotError"),
        "redis.ClusterCrossSlotError",
        "database",
    ),
    retry(
        "redis snapshot",
        lambda: redis("ResponseError", "MISCONF Redis is configured"),
        "redis.reply.MISCONF",
        "database",
    ),
    never(
        "redis login reply",
        lambda: redis("ResponseError", "NOAUTH Authentication required."),
        "redis.reply.NOAUTH",
        "auth",
    ),
    retry(
        "valkey connection",
        lambda: redis("ConnectionError", client="valkey"),
        "valkey.ConnectionError",
        "database",
    ),
    never(
        "valkey login",
        lambda: redis("AuthenticationError", client="valkey"),
        "valkey.AuthenticationError",
        "auth",
    ),
    never(
        "redis login in a connection error",
        lambda: chained(Exception("x"), redis("AuthenticationError")),
        "redis.AuthenticationError",
        "auth",
    ),
]

POSTGRES = [
    *(
        retry(f"psycopg {c}", lambda c=c: psycopg(c), f"postgres.sqlstate.{c}", "database")
        for c in (
            "40001",
            "40P01",
            "40003",
            "55P03",
            "55006",
            "57P01",
            "57P02",
            "57P03",
            "57P04",
            "57P05",
            "57014",
            "25006",
            "08006",
            "08001",
            "53100",
            "53200",
            "58030",
        )
    ),  # type: ignore[misc]
    later("psycopg 53300", lambda: psycopg("53300"), "postgres.sqlstate.53300", "database"),
    *(
        never(f"psycopg {c}", lambda c=c: psycopg(c), f"postgres.sqlstate.{c}", category)
        for c, category in [
            ("22001", "database"),
            ("23505", "database"),
            ("28P01", "auth"),
            ("42P01", "database"),
            ("0A000", "database"),
        ]
    ),  # type: ignore[misc]
    retry(
        "psycopg no code",
        lambda: psycopg_error("OperationalError"),
        "psycopg.OperationalError",
        "database",
    ),
    retry(
        "psycopg interface",
        lambda: psycopg_error("InterfaceError"),
        "psycopg.InterfaceError",
        "database",
    ),
    retry(
        "psycopg refused, for real",
        psycopg_refused,
        "psycopg.OperationalError",
        "database",
    ),
    retry(
        "psycopg2 without a connection",
        lambda: psycopg2("SerializationFailure"),
        "psycopg2.OperationalError",
        "database",
    ),
    never(
        "psycopg2 duplicate without a connection",
        lambda: psycopg2("UniqueViolation"),
        "psycopg2.IntegrityError",
        "database",
    ),
    retry(
        "psycopg2 cancelled",
        lambda: psycopg2("QueryCanceled"),
        "psycopg2.OperationalError",
        "database",
    ),
    later(
        "asyncpg full",
        lambda: asyncpg("TooManyConnectionsError"),
        "postgres.sqlstate.53300",
        "database",
    ),
    retry(
        "asyncpg deadlock",
        lambda: asyncpg("DeadlockDetectedError"),
        "postgres.sqlstate.40P01",
        "database",
    ),
    never(
        "asyncpg duplicate",
        lambda: asyncpg("UniqueViolationError"),
        "postgres.sqlstate.23505",
        "database",
    ),
    retry(
        "asyncpg interface", lambda: asyncpg("InterfaceError"), "asyncpg.InterfaceError", "database"
    ),
]

MYSQL = [
    *(
        retry(
            f"mysql {c}",
            lambda c=c: mysql("OperationalError", c, "x"),
            f"mysql.code.{c}",
            "database",
        )
        for c in (
            1205,
            1213,
            1040,
            1053,
            1158,
            1159,
            1160,
            1161,
            1317,
            1927,
            2002,
            2003,
            2006,
            2013,
            2014,
            2055,
            3024,
        )
    ),  # type: ignore[misc]
    *(
        later(
            f"mysql {c}",
            lambda c=c: mysql("OperationalError", c, "x"),
            f"mysql.code.{c}",
            "database",
        )
        for c in (1203, 1226)
    ),  # type: ignore[misc]
    *(
        never(
            f"mysql {c}", lambda c=c: mysql("OperationalError", c, "x"), f"mysql.code.{c}", category
        )
        for c, category in [
            (1044, "auth"),
            (1045, "auth"),
            (1049, "database"),
            (1054, "database"),
            (1062, "database"),
            (1064, "database"),
            (1146, "database"),
            (1451, "database"),
            (1452, "database"),
        ]
    ),  # type: ignore[misc]
    retry(
        "pymysql no code",
        lambda: mysql("InterfaceError", 0, "x"),
        "pymysql.InterfaceError",
        "database",
    ),
    never(
        "pymysql integrity",
        lambda: mysql("IntegrityError", 9999, "x"),
        "pymysql.IntegrityError",
        "database",
    ),
    retry("connector lost", lambda: connector(2013), "mysql.code.2013", "database"),
    never(
        "connector login", lambda: connector(1045, "ProgrammingError"), "mysql.code.1045", "auth"
    ),
    retry(
        "connector no code",
        lambda: mysql("OperationalError", "x", driver="mysql.connector.errors"),
        "mysql.OperationalError",
        "database",
    ),
    retry(
        "connector pool",
        lambda: mysql("PoolError", "x", driver="mysql.connector.errors"),
        "mysql.PoolError",
        "database",
    ),
]

WRAPPED = [
    retry(
        "sqlalchemy invalidated",
        lambda: sqlalchemy("OperationalError", psycopg("42P01"), connection_invalidated=True),
        "sqlalchemy.connection_invalidated",
        "database",
    ),
    retry(
        "sqlalchemy deadlock",
        lambda: sqlalchemy("OperationalError", psycopg("40P01")),
        "postgres.sqlstate.40P01",
        "database",
    ),
    never(
        "sqlalchemy duplicate",
        lambda: sqlalchemy("IntegrityError", psycopg("23505")),
        "postgres.sqlstate.23505",
        "database",
    ),
    retry(
        "sqlalchemy mysql gone",
        lambda: sqlalchemy("OperationalError", mysql("OperationalError", 2006, "x")),
        "mysql.code.2006",
        "database",
    ),
    never("sqlalchemy code e3q8 is no code", sqlalchemy_no_table, "sqlite3.Error", "database"),
    retry(
        "sqlalchemy unknown driver",
        lambda: sqlalchemy("OperationalError"),
        "sqlalchemy.OperationalError",
        "database",
    ),
    never(
        "sqlalchemy unknown driver, duplicate",
        lambda: sqlalchemy("IntegrityError"),
        "sqlalchemy.IntegrityError",
        "database",
    ),
    retry(
        "sqlalchemy pool",
        lambda: library("sqlalchemy.exc").TimeoutError("x"),
        "sqlalchemy.TimeoutError",
        "database",
    ),
    never(
        "sqlalchemy no result",
        lambda: library("sqlalchemy.exc").NoResultFound("x"),
        "sqlalchemy.SQLAlchemyError",
        "database",
    ),
    retry(
        "django deadlock",
        lambda: django("OperationalError", psycopg("40P01")),
        "postgres.sqlstate.40P01",
        "database",
    ),
    never(
        "django no table",
        lambda: django("OperationalError", mysql("OperationalError", 1146, "x")),
        "mysql.code.1146",
        "database",
    ),
    retry(
        "django operational",
        lambda: django("OperationalError"),
        "django.OperationalError",
        "database",
    ),
    retry(
        "django interface", lambda: django("InterfaceError"), "django.InterfaceError", "database"
    ),
    *(
        never(f"django {n}", lambda n=n: django(n), f"django.{n}", "database")
        for n in ("IntegrityError", "DataError", "ProgrammingError")
    ),  # type: ignore[misc]
]

MONGO = [
    *(
        retry(
            f"mongo {c}",
            lambda c=c: mongo("OperationFailure", "x", c),
            f"pymongo.code.{c}",
            "database",
        )
        for c in (6, 7, 24, 50, 89, 91, 112, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436)
    ),  # type: ignore[misc]
    *(
        retry(
            f"mongo {label}",
            lambda label=label: labelled(label),
            f"pymongo.label.{label}",
            "database",
        )
        for label in ("TransientTransactionError", "RetryableWriteError", "RetryableError")
    ),  # type: ignore[misc]
    later(
        "mongo overloaded",
        lambda: labelled("SystemOverloadedError"),
        "pymongo.label.SystemOverloadedError",
        "database",
    ),
    never(
        "mongo duplicate",
        lambda: mongo("DuplicateKeyError", "x", 11000),
        "pymongo.code.11000",
        "database",
    ),
    never(
        "mongo bulk duplicate",
        lambda: mongo("BulkWriteError", {"writeErrors": [{"code": 112}, {"code": 11000}]}),
        "pymongo.code.11000",
        "database",
    ),
    never("mongo login", lambda: mongo("OperationFailure", "x", 18), "pymongo.code.18", "auth"),
    never("mongo right", lambda: mongo("OperationFailure", "x", 13), "pymongo.code.13", "auth"),
    never(
        "mongo configuration",
        lambda: mongo("ConfigurationError"),
        "pymongo.ConfigurationError",
        "code",
    ),
    never(
        "mongo document",
        lambda: library("bson.errors").InvalidDocument("x"),
        "bson.BSONError",
        "code",
    ),
    retry(
        "mongo reconnect", lambda: mongo("AutoReconnect"), "pymongo.ConnectionFailure", "database"
    ),
    retry(
        "mongo selection",
        lambda: mongo("ServerSelectionTimeoutError"),
        "pymongo.ServerSelectionTimeoutError",
        "database",
    ),
]

BROKERS = [
    retry(
        "kombu operational", lambda: kombu("OperationalError"), "kombu.OperationalError", "broker"
    ),
    *(
        never(f"kombu {n}", lambda n=n: kombu(n), f"kombu.{n}", "code")
        for n in ("EncodeError", "DecodeError", "ContentDisallowed", "SerializerNotInstalled")
    ),  # type: ignore[misc]
    retry("amqp 320", lambda: amqp("ConnectionForced"), "amqp.code.320", "broker"),
    retry("amqp 405 is not HTTP", lambda: amqp("ResourceLocked"), "amqp.code.405", "broker"),
    retry("amqp 506", lambda: amqp("ResourceError"), "amqp.code.506", "broker"),
    never("amqp 404 is not HTTP", lambda: amqp("NotFound"), "amqp.code.404", "broker"),
    never("amqp 403 is not HTTP", lambda: amqp("AccessRefused"), "amqp.code.403", "auth"),
    never("amqp 402", lambda: amqp("InvalidPath"), "amqp.code.402", "broker"),
    never("amqp 406", lambda: amqp("PreconditionFailed"), "amqp.code.406", "broker"),
    never("amqp 504", lambda: amqp("ChannelNotOpen"), "amqp.code.504", "broker"),
    never("amqp 311", lambda: amqp("ContentTooLarge"), "amqp.code.311", "broker"),
    retry(
        "amqp recoverable",
        lambda: amqp("RecoverableConnectionError"),
        "amqp.RecoverableConnectionError",
        "broker",
    ),
    never(
        "amqp irrecoverable",
        lambda: amqp("IrrecoverableChannelError"),
        "amqp.IrrecoverableChannelError",
        "broker",
    ),
    retry("amqp nacked", lambda: amqp("MessageNacked"), "amqp.MessageNacked", "broker"),
    retry("kafka timeout", lambda: kafka("KafkaTimeoutError"), "kafka.KafkaTimeoutError", "broker"),
    retry(
        "kafka errno 6 is not the system's",
        lambda: kafka("NotLeaderForPartitionError"),
        "kafka.NotLeaderForPartitionError",
        "broker",
    ),
    retry(
        "kafka coordinator",
        lambda: kafka("CoordinatorNotAvailableError"),
        "kafka.CoordinatorNotAvailableError",
        "broker",
    ),
    never(
        "kafka size",
        lambda: kafka("MessageSizeTooLargeError"),
        "kafka.MessageSizeTooLargeError",
        "broker",
    ),
    never(
        "kafka right",
        lambda: kafka("TopicAuthorizationFailedError"),
        "kafka.TopicAuthorizationFailedError",
        "broker",
    ),
    retry("confluent flag", lambda: confluent("_FATAL", True), "confluent_kafka._FATAL", "broker"),
    never(
        "confluent size",
        lambda: confluent("MSG_SIZE_TOO_LARGE"),
        "confluent_kafka.MSG_SIZE_TOO_LARGE",
        "broker",
    ),
    retry(
        "confluent no broker, flagged False",
        lambda: confluent("_ALL_BROKERS_DOWN"),
        "confluent_kafka._ALL_BROKERS_DOWN",
        "broker",
    ),
    retry(
        "confluent leader, flagged False",
        lambda: confluent("NOT_LEADER_FOR_PARTITION"),
        "confluent_kafka.NOT_LEADER_FOR_PARTITION",
        "broker",
    ),
    retry("ssh", lambda: paramiko("SSHException"), "paramiko.SSHException", "network"),
    retry(
        "ssh refused",
        lambda: paramiko("NoValidConnectionsError", {("127.0.0.1", 22): OSError(111, "x")}),
        "paramiko.NoValidConnectionsError",
        "network",
    ),
    never(
        "ssh login",
        lambda: paramiko("AuthenticationException"),
        "paramiko.AuthenticationException",
        "auth",
    ),
    never(
        "ssh host key",
        lambda: paramiko("BadHostKeyException", "h", _Key(), _Key()),
        "paramiko.BadHostKeyException",
        "auth",
    ),
]


class _Key:
    def get_base64(self) -> str:
        return "x"


CASES: list[Case] = [*REDIS, *POSTGRES, *MYSQL, *WRAPPED, *MONGO, *BROKERS]
