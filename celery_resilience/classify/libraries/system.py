"""The operating system: errno, sockets, host names, TLS and the standard library's network."""

from __future__ import annotations

import errno
import socket

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, permanent, transient
from celery_resilience.classify.reading import number, peek
from celery_resilience.classify.verdict import Verdict

__all__ = ["ASYNCIO", "DNS", "NETWORK", "OS", "TLS", "read_errno"]

_NO_CONNECTION = transient("network", "the connection could not be made or did not hold")
_TIMED_OUT = transient("network", "no answer came in time")
_CUT_OFF = transient("network", "the other side stopped in the middle of an answer")
_BUSY = transient("filesystem", "the device, the file or a lock is busy or did not answer")

#: By name: numbers differ between systems.
ERRNOS: dict[object, Finding] = {
    **each(_NO_CONNECTION, "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EPIPE", "ENOTCONN"),
    **each(_TIMED_OUT, "ETIMEDOUT"),
    **each(
        transient("network", "the host or its network can't be reached"),
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
    ),
    "EADDRNOTAVAIL": transient("network", "no local port or address is free"),
    **each(transient("network", "the system has no buffer free"), "ENOBUFS"),
    **each(transient("process", "interrupted, or not ready yet"), "EAGAIN", "EINTR"),
    "ENOMEM": transient("memory", "the system is out of memory"),
    "EMFILE": transient(
        "process", "too many open files in this process; look for a leak or raise the limit"
    ),
    "ENFILE": transient("process", "too many open files on this machine"),
    **each(_BUSY, "EBUSY", "EIO", "ESTALE", "EDEADLK", "ENOLCK"),
    "ENOSPC": transient("filesystem", "the disk is full; make room"),
    "EDQUOT": transient("filesystem", "the disk quota is used up; make room"),
    "ENOENT": permanent("filesystem", "no such file or directory: check the path"),
    "EACCES": permanent("filesystem", "no permission: check owner and mode of the file"),
    "EPERM": permanent("filesystem", "not permitted to this user"),
    "EISDIR": permanent("filesystem", "a directory where a file was meant: check the path"),
    "ENOTDIR": permanent("filesystem", "a file where a directory was meant: check the path"),
    "EEXIST": permanent("filesystem", "it is there already: check the path"),
    "ENAMETOOLONG": permanent("filesystem", "the name is too long"),
    "EINVAL": permanent("filesystem", "the system does not take such an argument"),
    "EROFS": permanent("filesystem", "the file system is read-only"),
}
_VERDICTS = {
    getattr(errno, str(name)): finding.verdict(f"os.errno.{name}")
    for name, finding in ERRNOS.items()
    if hasattr(errno, str(name))
}

# An exception made without an errno says the same through its class.
_ERRNO_OF_CLASS = {
    "FileNotFoundError": "ENOENT",
    "PermissionError": "EACCES",
    "IsADirectoryError": "EISDIR",
    "NotADirectoryError": "ENOTDIR",
    "FileExistsError": "EEXIST",
    "BlockingIOError": "EAGAIN",
    "InterruptedError": "EINTR",
}


def read_errno(exception: BaseException, look: Look) -> Verdict | None:
    """The verdict on an OSError's errno; for classes that no library rule covers."""
    code = number(peek(exception, "errno"))
    return None if code is None else _VERDICTS.get(code)


OS = Family(
    name="OSError",
    roots=frozenset({"builtins"}),
    reads="`errno`, else class",
    prefix="os",
    http=False,
    classes={name: ERRNOS[code] for name, code in _ERRNO_OF_CLASS.items()},
    codes={"errno": ERRNOS},
)

NETWORK = Family(
    name="built-in network errors",
    roots=frozenset({"builtins"}),
    reads="class",
    prefix="network",
    http=False,
    classes={
        "ConnectionError": _NO_CONNECTION,
        "TimeoutError": _TIMED_OUT,
        "EOFError": _CUT_OFF,
    },
)

ASYNCIO = Family(
    name="standard library",
    roots=frozenset({"asyncio", "http", "concurrent", "gevent", "eventlet", "multiprocessing"}),
    reads="class",
    http=False,
    classes={
        **each(_TIMED_OUT, "TimeoutError", "Timeout"),
        **each(_CUT_OFF, "IncompleteReadError", "IncompleteRead"),
        "HTTPException": transient("network", "the answer was not proper HTTP"),
        "InvalidURL": permanent("code", "the address is not a URL; check it"),
        "BrokenExecutor": transient(
            "process", "a process of the pool was killed, often for memory", 2
        ),
    },
)

_GAI: dict[object, Finding] = {
    **each(
        transient("dns", "the name server did not answer"), "EAI_AGAIN", "EAI_SYSTEM", "EAI_MEMORY"
    ),
    # In a cluster names come and go with their services: worth one more look.
    **each(
        transient("dns", "no such host: check the name", 1), "EAI_NONAME", "EAI_NODATA", "EAI_FAIL"
    ),
    **each(
        permanent("dns", "the question to the resolver was wrong: check host, port and family"),
        "EAI_FAMILY",
        "EAI_SERVICE",
        "EAI_BADFLAGS",
        "EAI_SOCKTYPE",
    ),
}
_GAI_VERDICTS = {
    getattr(socket, str(name)): finding.verdict(f"dns.{name}")
    for name, finding in _GAI.items()
    if hasattr(socket, str(name))
}


def _read_gai(exception: BaseException, look: Look) -> Verdict | None:
    code = number(peek(exception, "errno"))
    return None if code is None else _GAI_VERDICTS.get(code)


DNS = Family(
    name="DNS",
    roots=frozenset({"socket"}),
    reads="`errno` of socket.gaierror",
    prefix="dns",
    http=False,
    classes=each(transient("dns", "the host name could not be resolved", 1), "gaierror", "herror"),
    codes={"gai": _GAI},
    read=_read_gai,
)

TLS = Family(
    name="TLS",
    roots=frozenset({"ssl"}),
    reads="class; a refused certificate is looked for in the whole chain",
    prefix="tls",
    http=False,
    classes={
        "SSLCertVerificationError": permanent("tls", "the certificate was not accepted; check it"),
        "SSLError": transient("tls", "the encrypted connection broke off"),
    },
)
