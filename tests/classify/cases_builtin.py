"""Python, its standard library, Celery and the wrappers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures.process
import errno
import http.client
import json
import multiprocessing
import smtplib
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.error
from contextlib import closing
from email.message import Message
from pathlib import Path

from tests.classify.case import Case, chained, during, later, never, raised, retry
from tests.classify.conftest import library


def os_error(code: int) -> OSError:
    return OSError(code, "it failed")


def gai(code: int) -> socket.gaierror:
    return socket.gaierror(code, "resolving failed")


def smtp(name: str, *args: object) -> BaseException:
    return getattr(smtplib, name)(*args)  # type: ignore[no-any-return]


def ended(code: int) -> BaseException:
    return raised(
        lambda: subprocess.run(["sh", "-c", f"exit {code}"], check=True, capture_output=True)
    )


def killed(signal: str) -> BaseException:
    return raised(
        lambda: subprocess.run(["sh", "-c", f"kill -{signal} $$"], check=True, capture_output=True)
    )


def sqlite_missing_table() -> BaseException:
    with closing(sqlite3.connect(":memory:")) as db:
        return raised(lambda: db.execute("select * from nothing"))


def sqlite_duplicate() -> BaseException:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("create table t (a primary key)")
        return raised(lambda: [db.execute("insert into t values (1)") for _ in range(2)])


def url_error(code: int, **headers: str) -> urllib.error.HTTPError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("http://x", code, "it failed", message, None)


def group(*members: Exception) -> BaseException:
    if sys.version_info >= (3, 11):
        return ExceptionGroup("several", members)  # noqa: F821
    return library("exceptiongroup").ExceptionGroup("several", members)  # type: ignore[no-any-return]


def backport_group(*members: Exception) -> BaseException:
    return library("exceptiongroup").ExceptionGroup("several", members)  # type: ignore[no-any-return]


def ours(name: str, *args: object, **kwargs: object) -> BaseException:
    return getattr(library("celery_resilience.errors"), name)(*args, **kwargs)  # type: ignore[no-any-return]


def celery(name: str, *args: object) -> BaseException:
    return getattr(library("celery.exceptions"), name)(*args)  # type: ignore[no-any-return]


def gave_up(error: BaseException) -> BaseException:
    tenacity = library("tenacity")

    def fail() -> None:
        raise error

    stop = tenacity.stop_after_attempt(1)
    return raised(lambda: tenacity.Retrying(stop=stop)(fail))


class Unknown(Exception):
    pass


BUGS = [
    never(name, lambda error=error: error, rule, "code")  # type: ignore[misc]
    for name, error, rule in [
        ("type error", TypeError("x"), "code.TypeError"),
        ("attribute error", AttributeError("x"), "code.AttributeError"),
        ("name error", NameError("x"), "code.NameError"),
        ("unbound local", UnboundLocalError("x"), "code.NameError"),
        ("import error", ImportError("x"), "code.ImportError"),
        ("module not found", ModuleNotFoundError("x"), "code.ModuleNotFoundError"),
        ("syntax error", SyntaxError("x"), "code.SyntaxError"),
        ("assertion", AssertionError("x"), "code.AssertionError"),
        ("key error", KeyError("x"), "code.KeyError"),
        ("index error", IndexError("x"), "code.IndexError"),
        ("division by zero", ZeroDivisionError("x"), "code.ZeroDivisionError"),
        ("overflow", OverflowError("x"), "code.ArithmeticError"),
        ("value error", ValueError("x"), "code.ValueError"),
        ("json", raised(lambda: json.loads("{")), "code.ValueError"),
        ("unicode", raised(lambda: b"\xff".decode("utf-8")), "code.UnicodeError"),
        ("not implemented", NotImplementedError("x"), "code.NotImplementedError"),
        ("recursion", RecursionError("x"), "code.RecursionError"),
    ]
]

SYSTEM = [
    retry(
        "connection refused",
        lambda: ConnectionRefusedError(errno.ECONNREFUSED, "x"),
        "os.errno.ECONNREFUSED",
        "network",
    ),
    retry(
        "connection reset, no errno",
        lambda: ConnectionResetError("x"),
        "network.ConnectionError",
        "network",
    ),
    retry("broken pipe", lambda: BrokenPipeError(errno.EPIPE, "x"), "os.errno.EPIPE", "network"),
    retry("timeout", TimeoutError, "network.TimeoutError", "network"),
    retry("socket timeout", lambda: socket.timeout("x"), "network.TimeoutError", "network"),  # noqa: UP041
    retry("asyncio timeout", asyncio.TimeoutError, "", "network"),
    retry("futures timeout", concurrent.futures.TimeoutError, "", "network"),
    retry(
        "multiprocessing timeout",
        multiprocessing.TimeoutError,
        "multiprocessing.TimeoutError",
        "network",
    ),
    retry("end of file", EOFError, "network.EOFError", "network"),
    retry(
        "incomplete stream",
        lambda: asyncio.IncompleteReadError(b"", 1),
        "asyncio.IncompleteReadError",
        "network",
    ),
    retry("http.client", lambda: http.client.BadStatusLine("x"), "http.HTTPException", "network"),
    retry(
        "incomplete answer",
        lambda: http.client.IncompleteRead(b""),
        "http.IncompleteRead",
        "network",
    ),
    never("http.client bad url", lambda: http.client.InvalidURL("x"), "http.InvalidURL", "code"),
    *(
        retry(name, lambda name=name: os_error(getattr(errno, name)), f"os.errno.{name}", category)  # type: ignore[misc]
        for name, category in [
            ("ETIMEDOUT", "network"),
            ("EHOSTUNREACH", "network"),
            ("ENETUNREACH", "network"),
            ("ENOBUFS", "network"),
            ("EADDRNOTAVAIL", "network"),
            ("EAGAIN", "process"),
            ("EINTR", "process"),
            ("EMFILE", "process"),
            ("ENFILE", "process"),
            ("ENOMEM", "memory"),
            ("EBUSY", "filesystem"),
            ("EIO", "filesystem"),
            ("ESTALE", "filesystem"),
            ("ENOLCK", "filesystem"),
            ("ENOSPC", "filesystem"),
            ("EDQUOT", "filesystem"),
        ]
    ),
    *(
        never(
            name, lambda name=name: os_error(getattr(errno, name)), f"os.errno.{name}", "filesystem"
        )  # type: ignore[misc]
        for name in (
            "ENOENT",
            "EACCES",
            "EPERM",
            "EISDIR",
            "ENOTDIR",
            "EEXIST",
            "ENAMETOOLONG",
            "EINVAL",
            "EROFS",
        )
    ),
    never(
        "a file that is not there",
        lambda: raised(Path("/nowhere/at/all").read_text),
        "os.errno.ENOENT",
        "filesystem",
    ),
    never(
        "file not found, no errno",
        lambda: FileNotFoundError("x"),
        "os.FileNotFoundError",
        "filesystem",
    ),
    retry("dns again", lambda: gai(socket.EAI_AGAIN), "dns.EAI_AGAIN", "dns"),
    retry("dns no name", lambda: gai(socket.EAI_NONAME), "dns.EAI_NONAME", "dns", max_retries=1),
    never("dns family", lambda: gai(socket.EAI_FAMILY), "dns.EAI_FAMILY", "dns"),
    never("dns service", lambda: gai(socket.EAI_SERVICE), "dns.EAI_SERVICE", "dns"),
    never("dns flags", lambda: gai(socket.EAI_BADFLAGS), "dns.EAI_BADFLAGS", "dns"),
    never(
        "certificate", lambda: ssl.SSLCertVerificationError(1, "expired"), "tls.certificate", "tls"
    ),
    retry("tls end of file", lambda: ssl.SSLEOFError(8, "x"), "tls.SSLError", "tls"),
    retry("tls record", lambda: ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "tls.SSLError", "tls"),
    never(
        "certificate below",
        lambda: chained(ConnectionError("x"), ssl.SSLCertVerificationError(1, "x")),
        "tls.certificate",
        "tls",
    ),
    never(
        "certificate around",
        lambda: during(Unknown("x"), ssl.SSLCertVerificationError(1, "x")),
        "tls.certificate",
        "tls",
    ),
    retry("memory", MemoryError, "memory.MemoryError", "memory", max_retries=2),
    retry(
        "broken pool",
        lambda: concurrent.futures.process.BrokenProcessPool("x"),
        "concurrent.BrokenExecutor",
        "process",
        max_retries=2,
    ),
    never("exit", lambda: SystemExit(1), "exit.SystemExit", "process"),
    never("interrupt", KeyboardInterrupt, "exit.KeyboardInterrupt", "process"),
    never("cancelled", asyncio.CancelledError, "exit.CancelledError", "process"),
    retry("gevent timeout", lambda: library("gevent").Timeout(1), "gevent.Timeout", "network"),
]

PROCESSES = [
    *(
        retry(f"exit {code}", lambda code=code: ended(code), f"subprocess.exit.{code}", "process")
        for code in (75, 69, 71, 74, 124, 137, 143)
    ),  # type: ignore[misc]
    *(
        never(f"exit {code}", lambda code=code: ended(code), f"subprocess.exit.{code}", "process")
        for code in (1, 2, 64, 65, 66, 67, 68, 70, 77, 78, 126, 127)
    ),  # type: ignore[misc]
    retry("killed", lambda: killed("KILL"), "subprocess.exit.-9", "process"),
    retry("terminated", lambda: killed("TERM"), "subprocess.exit.-15", "process"),
    never("segmentation fault", lambda: killed("SEGV"), "subprocess.exit.-11", "process"),
    retry(
        "command timeout",
        lambda: raised(lambda: subprocess.run(["sleep", "9"], timeout=0.01, check=False)),
        "subprocess.TimeoutExpired",
        "process",
    ),
    retry(
        "soft time limit",
        lambda: celery("SoftTimeLimitExceeded"),
        "billiard.SoftTimeLimitExceeded",
        "process",
    ),
    retry(
        "hard time limit",
        lambda: celery("TimeLimitExceeded", 3),
        "billiard.TimeLimitExceeded",
        "process",
    ),
    retry(
        "worker lost", lambda: celery("WorkerLostError", "x"), "billiard.WorkerLostError", "process"
    ),
    retry("celery timeout", lambda: celery("TimeoutError", "x"), "celery.TimeoutError", "process"),
    retry(
        "celery backend", lambda: celery("BackendStoreError", "x"), "celery.BackendError", "broker"
    ),
    never("not registered", lambda: celery("NotRegistered", "x"), "celery.NotRegistered", "code"),
    never(
        "invalid task", lambda: celery("InvalidTaskError", "x"), "celery.InvalidTaskError", "code"
    ),
    never(
        "max retries",
        lambda: celery("MaxRetriesExceededError", "x"),
        "celery.MaxRetriesExceededError",
        "task",
    ),
]

MAIL = [
    *(
        retry(
            f"smtp {code}",
            lambda code=code: smtp("SMTPDataError", code, b"x"),
            f"smtp.{code}",
            "mail",
        )
        for code in (421, 450, 451, 452, 454)
    ),  # type: ignore[misc]
    never("smtp login", lambda: smtp("SMTPAuthenticationError", 535, b"x"), "smtp.535", "auth"),
    never("smtp sender", lambda: smtp("SMTPSenderRefused", 550, b"x", "me"), "smtp.550", "mail"),
    never("smtp 571", lambda: smtp("SMTPDataError", 571, b"x"), "smtp.571", "mail"),
    retry(
        "smtp hung up",
        lambda: smtp("SMTPServerDisconnected", "x"),
        "smtp.SMTPServerDisconnected",
        "mail",
    ),
    retry(
        "smtp connect", lambda: smtp("SMTPConnectError", 554, b"x"), "smtp.SMTPConnectError", "mail"
    ),
    retry("smtp helo", lambda: smtp("SMTPHeloError", 501, b"x"), "smtp.SMTPHeloError", "mail"),
    never(
        "smtp not supported",
        lambda: smtp("SMTPNotSupportedError", "x"),
        "smtp.SMTPNotSupportedError",
        "mail",
    ),
    retry(
        "smtp one recipient later",
        lambda: smtp("SMTPRecipientsRefused", {"a": (550, b"x"), "b": (450, b"x")}),
        "smtp.450",
        "mail",
    ),
    never(
        "smtp no recipient ever",
        lambda: smtp("SMTPRecipientsRefused", {"a": (550, b"x"), "b": (553, b"x")}),
        "smtp.550",
        "mail",
    ),
]

SQLITE = [
    retry(
        "sqlite locked",
        lambda: sqlite3.OperationalError("database is locked"),
        "sqlite3.locked",
        "database",
    ),
    retry(
        "sqlite busy",
        lambda: sqlite3.OperationalError("database is busy"),
        "sqlite3.busy",
        "database",
    ),
    retry(
        "sqlite disk",
        lambda: sqlite3.OperationalError("disk I/O error"),
        "sqlite3.disk_i/o",
        "database",
    ),
    retry(
        "sqlite open",
        lambda: raised(lambda: sqlite3.connect("/nowhere/at/all")),
        "sqlite3.unable_to_open",
        "database",
    ),
    never("sqlite no table", sqlite_missing_table, "sqlite3.Error", "database"),
    never("sqlite duplicate", sqlite_duplicate, "sqlite3.IntegrityError", "database"),
]

URLLIB = [
    retry(
        "urllib 503",
        lambda: url_error(503, retry_after="7"),
        "http.status.503",
        "http",
        retry_after=7.0,
    ),
    later(
        "urllib 429",
        lambda: url_error(429, retry_after="7"),
        "http.status.429",
        "http",
        retry_after=7.0,
    ),
    never("urllib 404", lambda: url_error(404), "http.status.404", "http"),
    retry(
        "urllib refused",
        lambda: urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "x")),
        "os.errno.ECONNREFUSED",
        "network",
    ),
    never(
        "urllib certificate",
        lambda: urllib.error.URLError(ssl.SSLCertVerificationError(1, "x")),
        "tls.certificate",
        "tls",
    ),
    retry(
        "urllib words", lambda: urllib.error.URLError("no host given"), "urllib.URLError", "network"
    ),
]

WRAPPERS = [
    never(
        "group with a bug", lambda: group(TimeoutError(), TypeError("x")), "code.TypeError", "code"
    ),
    later(
        "group with a limit",
        lambda: group(
            TimeoutError(),
            ours("RateLimitedError", retry_after=3),
            ours("RateLimitedError", retry_after=9),
        ),
        "protocol.RateLimitedError",
        "task",
        retry_after=9.0,
    ),
    retry(
        "group of transients",
        lambda: group(Unknown(), MemoryError()),
        "memory.MemoryError",
        "memory",
        max_retries=2,
    ),
    never(
        "group in a group",
        lambda: group(TimeoutError(), group(KeyError("x"))),
        "code.KeyError",
        "code",
    ),  # type: ignore[arg-type]
    never(
        "backport group",
        lambda: backport_group(TimeoutError(), TypeError("x")),
        "code.TypeError",
        "code",
    ),
    retry(
        "tenacity, network",
        lambda: gave_up(ConnectionResetError("x")),
        "network.ConnectionError",
        "network",
    ),
    never("tenacity, bug", lambda: gave_up(TypeError("x")), "code.TypeError", "code"),
    retry("tenacity again", lambda: library("tenacity").TryAgain(), "tenacity.TryAgain", "task"),
    retry(
        "first argument",
        lambda: Unknown(ConnectionResetError("x")),
        "network.ConnectionError",
        "network",
    ),
    retry(
        "cause", lambda: chained(Unknown("x"), TimeoutError()), "network.TimeoutError", "network"
    ),
    never("cause is a bug", lambda: chained(Unknown("x"), KeyError("x")), "code.KeyError", "code"),
    retry(
        "context", lambda: during(Unknown("x"), TimeoutError()), "network.TimeoutError", "network"
    ),
]

PROTOCOL = [
    retry("transient", lambda: ours("TransientError", "x"), "protocol.TransientError", "task"),
    retry(
        "transient, delay",
        lambda: ours("TransientError", "x", retry_after=30),
        "protocol.TransientError",
        "task",
        retry_after=30.0,
    ),
    later(
        "rate limited",
        lambda: ours("RateLimitedError", "x", retry_after=30),
        "protocol.RateLimitedError",
        "task",
        retry_after=30.0,
    ),
    never("permanent", lambda: ours("PermanentError", "x"), "protocol.PermanentError", "task"),
    later("snooze", lambda: ours("Snooze", 60), "protocol.Snooze", "task", retry_after=60.0),
    never("discard", lambda: ours("Discard", "x"), "protocol.Discard", "task"),
    never(
        "body exited",
        lambda: chained(ours("BodyExited", "x"), SystemExit(1)),
        "protocol.BodyExited",
        "process",
    ),
    retry("broker error", lambda: ours("BrokerError", "x"), "protocol.BrokerError", "broker"),
    never(
        "permanent, from a timeout",
        lambda: chained(ours("PermanentError", "x"), TimeoutError()),
        "protocol.PermanentError",
        "task",
    ),
]

CASES: list[Case] = [*BUGS, *SYSTEM, *PROCESSES, *MAIL, *SQLITE, *URLLIB, *WRAPPERS, *PROTOCOL]
