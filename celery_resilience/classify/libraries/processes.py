"""Child processes, time limits, Celery's own errors, and mail servers."""

from __future__ import annotations

from collections.abc import Mapping

from celery_resilience.classify.family import Family, Look, each
from celery_resilience.classify.finding import Finding, permanent, transient
from celery_resilience.classify.reading import number, peek
from celery_resilience.classify.verdict import Verdict

__all__ = ["BILLIARD", "CELERY", "SMTP", "SUBPROCESS"]

_STOPPED = transient("process", "the command was stopped by a signal from outside")

#: Exit codes as sysexits.h and shells use them; negative ones are signals.
EXIT_CODES: dict[object, Finding] = {
    75: transient("process", "the command says: temporary failure, try again (75)"),
    69: transient("process", "the command says: a service is not available (69)"),
    71: transient("process", "the command says: the system is short of something (71)"),
    74: transient("process", "the command says: an I/O error (74)"),
    124: transient("process", "the command ran out of time (124)"),
    **each(_STOPPED, 137, 143, -1, -2, -9, -15),
    1: permanent("process", "the command failed; read its output"),
    2: permanent("process", "the command was called wrongly; check its arguments"),
    64: permanent("process", "the command was called wrongly (64)"),
    65: permanent("process", "the command does not like its input (65)"),
    66: permanent("process", "the command can't open its input (66)"),
    67: permanent("process", "the command does not know the user (67)"),
    68: permanent("process", "the command does not know the host (68)"),
    70: permanent("process", "the command has an error inside (70)"),
    77: permanent("process", "the command was not permitted to do that (77)"),
    78: permanent("process", "the command is configured wrongly (78)"),
    126: permanent("process", "the command can't be executed; check its mode"),
    127: permanent("process", "the command was not found; check PATH"),
    -11: permanent("process", "the command crashed (SIGSEGV)"),
}


def _read_exit(exception: BaseException, look: Look) -> Verdict | None:
    code = number(peek(exception, "returncode"))
    finding = EXIT_CODES.get(code)
    return None if finding is None else finding.verdict(f"subprocess.exit.{code}")


SUBPROCESS = Family(
    name="subprocess",
    roots=frozenset({"subprocess"}),
    reads="`returncode`",
    http=False,
    classes={"TimeoutExpired": transient("process", "the command ran out of time")},
    codes={"exit": EXIT_CODES},
    read=_read_exit,
)

BILLIARD = Family(
    name="billiard",
    roots=frozenset({"billiard"}),
    reads="class",
    http=False,
    classes={
        "SoftTimeLimitExceeded": transient("process", "the task ran into its soft time limit"),
        "TimeLimitExceeded": transient("process", "the task ran into its hard time limit"),
        "WorkerLostError": transient(
            "process", "the process that ran the task died, often for memory"
        ),
    },
)

CELERY = Family(
    name="Celery",
    roots=frozenset({"celery"}),
    reads="class",
    http=False,
    classes={
        "TimeoutError": transient("process", "a result did not come in time"),
        "BackendError": transient("broker", "the result backend did not do what was asked of it"),
        "NotRegistered": permanent("code", "no worker here knows that task; deploy or import it"),
        "InvalidTaskError": permanent("code", "that is not a valid task message"),
        "MaxRetriesExceededError": permanent(
            "task", "every retry that the task allowed itself has failed"
        ),
        "ImproperlyConfigured": permanent("code", "Celery is configured wrongly"),
        "SecurityError": permanent("auth", "a message is not signed as it should be"),
    },
)

_LATER = transient("mail", "the mail server is busy or asks to come later")
_NEVER = permanent("mail", "the mail server refuses for good; check address and content")
_NO_LOGIN = permanent("auth", "the mail server refused the credentials; check them")
#: Reply codes with a word of their own; every other 4xx is transient and every 5xx permanent.
REPLIES: dict[object, Finding] = {
    **each(_LATER, 421, 450, 451, 452, 454),
    **each(_NO_LOGIN, 530, 534, 535, 538),
    550: permanent("mail", "no such mailbox, or it does not take mail from us"),
    552: permanent("mail", "the mailbox is full or the mail is too large"),
    554: _NEVER,
}
_SMTP = {
    "SMTPServerDisconnected": transient("mail", "the mail server hung up"),
    "SMTPConnectError": transient("mail", "the mail server did not let us connect"),
    "SMTPHeloError": transient("mail", "the mail server refused our greeting"),
    "SMTPNotSupportedError": permanent("mail", "the mail server can't do what was asked of it"),
    "SMTPAuthenticationError": _NO_LOGIN,
}


def _reply(code: int | None) -> Finding | None:
    if code in REPLIES:
        return REPLIES[code]
    if code is None or not 400 <= code <= 599:
        return None
    return _LATER if code < 500 else _NEVER


def _read_smtp(exception: BaseException, look: Look) -> Verdict | None:
    for base in type(exception).__mro__:
        if base.__name__ in ("SMTPConnectError", "SMTPHeloError"):
            return None  # whatever the code: the class says that no mail was tried yet
    recipients = peek(exception, "recipients")
    if isinstance(recipients, Mapping) and recipients:
        return _refused_recipients(recipients)
    code = number(peek(exception, "smtp_code"))
    finding = _reply(code)
    return None if finding is None else finding.verdict(f"smtp.{code}")


def _refused_recipients(recipients: Mapping[object, object]) -> Verdict | None:
    # smtplib raises it only if no recipient at all was accepted: no copy is sent twice by a retry.
    codes = [number(answer[0]) for answer in recipients.values()]  # type: ignore[index]
    for code in sorted(code for code in codes if code is not None):
        finding = _reply(code)
        if finding is not None:
            return finding.verdict(f"smtp.{code}")
    return None


SMTP = Family(
    name="smtplib",
    roots=frozenset({"smtplib"}),
    reads="`smtp_code`; `recipients`: transient if any of them is",
    prefix="smtp",
    http=False,
    classes=_SMTP,
    codes={"reply": REPLIES},
    read=_read_smtp,
)
