"""SQL databases: drivers first, then what wraps them."""

from __future__ import annotations

from collections.abc import Iterable

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, limited, permanent, transient
from celery_resilience.classify.reading import arguments, cause_of, number, peek, text
from celery_resilience.classify.verdict import Verdict

__all__ = ["DJANGO", "MYSQL", "POSTGRES", "SQLALCHEMY", "SQLITE"]

_NO_CONNECTION = transient("database", "the connection to the database failed or was lost")
_COLLIDED = transient("database", "it collided with another transaction")
_LOCKED = transient("database", "another transaction holds the lock")
_FULL = limited("database", "too many connections to the database")
_INTEGRITY = permanent("database", "the data breaks a constraint, a duplicate perhaps")
_DATA = permanent("database", "the value does not fit the column")
_SQL = permanent("database", "the SQL or the schema is wrong; are all migrations applied?")
_NO_LOGIN = permanent("auth", "the database refused user or password; check them")
_UNSUPPORTED = permanent("database", "the database or its driver can't do that")

#: What the classes of PEP 249 mean where no code says more.
_PEP_249 = {
    **each(_NO_CONNECTION, "OperationalError", "InterfaceError"),
    "IntegrityError": _INTEGRITY,
    "DataError": _DATA,
    "ProgrammingError": _SQL,
    "NotSupportedError": _UNSUPPORTED,
}

#: SQLSTATEs, the longest match first: a whole code or its class, the first two characters.
SQLSTATES: dict[object, Finding] = {
    "40001": _COLLIDED,
    "40P01": transient("database", "a deadlock; the database chose this transaction to give way"),
    "40003": transient("database", "the connection broke before the outcome was known"),
    "55P03": _LOCKED,
    "55006": transient("database", "the object is in use"),
    **each(
        transient("database", "the database is starting, stopping or failing over"),
        "57P01",
        "57P02",
        "57P03",
        "57P04",
        "57P05",
    ),
    "57014": transient("database", "the query was cancelled, by its time limit perhaps"),
    "25006": transient("database", "the server is read-only, in a fail-over perhaps"),
    "53300": _FULL,
    "08": _NO_CONNECTION,
    "53": transient("database", "the database is short of memory, disk or connections"),
    "58": transient("database", "the database met an error of its system"),
    "22": _DATA,
    "23": _INTEGRITY,
    "28": _NO_LOGIN,
    "42": _SQL,
    "0A": _UNSUPPORTED,
}


def _read_sqlstate(exception: BaseException, look: Look) -> Verdict | None:
    code = text(peek(exception, "sqlstate")) or text(peek(exception, "pgcode"))
    if code is None or len(code) != 5:
        return None
    finding = SQLSTATES.get(code) or SQLSTATES.get(code[:2])
    return None if finding is None else finding.verdict(f"postgres.sqlstate.{code}")


POSTGRES = Family(
    name="psycopg, psycopg2, asyncpg",
    roots=frozenset({"psycopg", "psycopg2", "psycopg_pool", "asyncpg"}),
    reads="`sqlstate`, `pgcode`, else class",
    classes={
        **_PEP_249,
        "PoolTimeout": transient("database", "no connection of the pool became free in time"),
    },
    codes={"sqlstate": SQLSTATES},
    read=_read_sqlstate,
    http=False,
)

#: MySQL's and MariaDB's error numbers.
MYSQL_CODES: dict[object, Finding] = {
    1205: _LOCKED,
    1213: transient("database", "a deadlock; the database chose this transaction to give way"),
    1203: _FULL,
    1226: limited("database", "this user's share of the database is used up"),
    **each(_NO_CONNECTION, 1053, 1158, 1159, 1160, 1161, 1927, 2002, 2003, 2006, 2013, 2014, 2055),
    1040: transient("database", "too many connections to the database"),
    **each(transient("database", "the query was stopped or ran out of time"), 1317, 3024),
    **each(_NO_LOGIN, 1044, 1045),
    **each(_INTEGRITY, 1048, 1062, 1216, 1217, 1451, 1452, 1557, 1586),
    **each(_DATA, 1264, 1366, 1406),
    **each(_SQL, 1049, 1054, 1064, 1146),
}


def _read_mysql(exception: BaseException, look: Look) -> Verdict | None:
    given = arguments(exception)
    code = number(peek(exception, "errno"))
    if code is None or code <= 0:
        code = number(given[0]) if given else None
    finding = MYSQL_CODES.get(code)
    return None if finding is None else finding.verdict(f"mysql.code.{code}")


MYSQL = Family(
    name="MySQL (pymysql, MySQLdb, mysql.connector)",
    roots=frozenset({"pymysql", "MySQLdb", "mysql", "aiomysql", "asyncmy"}),
    reads="`errno` or `args[0]`, else class",
    classes={
        **_PEP_249,
        "PoolError": transient("database", "no connection of the pool is free"),
        **each(
            transient("database", "the database did not answer in time"),
            "ConnectionTimeoutError",
            "ReadTimeoutError",
            "WriteTimeoutError",
        ),
    },
    codes={"code": MYSQL_CODES},
    read=_read_mysql,
    http=False,
)

#: Words in the message of sqlite3.OperationalError; without any of them it is permanent.
SQLITE_WORDS: dict[object, Finding] = {
    "locked": _LOCKED,
    "busy": _LOCKED,
    "disk i/o": transient("database", "the disk under the database failed"),
    "unable to open": transient("database", "the database file can't be opened; check its path"),
}


def _read_sqlite(exception: BaseException, look: Look) -> Verdict | None:
    if not any(base.__name__ == "OperationalError" for base in type(exception).__mro__):
        return None
    given = arguments(exception)
    message = (text(given[0]) or "").lower() if given else ""
    for word, finding in SQLITE_WORDS.items():
        if str(word) in message:
            return finding.verdict(f"sqlite3.{str(word).replace(' ', '_')}")
    return None


SQLITE = Family(
    name="sqlite3",
    roots=frozenset({"sqlite3"}),
    reads="the message of OperationalError, else class",
    classes={
        "IntegrityError": _INTEGRITY,
        "DataError": _DATA,
        "Error": permanent("database", "the SQL, the schema or the database file is wrong"),
    },
    codes={"message": SQLITE_WORDS},
    read=_read_sqlite,
    http=False,
)

_INVALIDATED = _NO_CONNECTION.verdict("sqlalchemy.connection_invalidated")


def _read_sqlalchemy(exception: BaseException, look: Look) -> Verdict | None:
    if peek(exception, "connection_invalidated") is True:
        return _INVALIDATED
    return None


def _original(exception: BaseException) -> Iterable[object]:
    if peek(exception, "connection_invalidated") is not True:
        yield peek(exception, "orig")


SQLALCHEMY = Family(
    name="SQLAlchemy",
    roots=frozenset({"sqlalchemy"}),
    # Its `code` names a page of its documentation ("e3q8").
    reads="`connection_invalidated`, then `orig`, else class",
    classes={
        **_PEP_249,
        "TimeoutError": transient("database", "no connection of the pool became free in time"),
        "DisconnectionError": _NO_CONNECTION,
        "StaleDataError": _COLLIDED,
        # A driver that we don't know: its OperationalError is told from the rest above.
        "DBAPIError": permanent("database", "the database refused it"),
        "SQLAlchemyError": permanent("database", "the query or the mapping is wrong"),
    },
    read=_read_sqlalchemy,
    inner=_original,
    http=False,
)


def _driver(exception: BaseException) -> Iterable[object]:
    if any(base.__module__ == "django.db.utils" for base in type(exception).__mro__):
        yield cause_of(exception)


DJANGO = Family(
    name="Django",
    roots=frozenset({"django"}),
    reads="`__cause__` of the errors of django.db, else class",
    inner=_driver,
    http=False,
    classes={
        **_PEP_249,
        "ValidationError": permanent("code", "the data is not valid"),
        "ImproperlyConfigured": permanent("code", "Django is configured wrongly"),
        "FieldError": permanent("code", "the query names a field that is not there"),
        "FieldDoesNotExist": permanent("code", "there is no such field"),
        "PermissionDenied": permanent("auth", "not allowed by the application"),
        "SuspiciousOperation": permanent("code", "the data looks like an attack"),
    },
)
