"""What the tables hold: a verdict that does not know its rule or the server's delay yet."""

from __future__ import annotations

from typing import NamedTuple

from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["CATEGORIES", "Finding", "limited", "permanent", "transient"]

#: Every word that a verdict's ``category`` can be, and what it covers.
CATEGORIES = {
    "http": "a remote service answered, over HTTP or gRPC, with an error of its own",
    "network": "a connection could not be made or did not hold; an answer did not come in time",
    "dns": "a host name could not be resolved",
    "tls": "the encrypted connection failed, certificates included",
    "auth": "our credentials or permissions are refused",
    "database": "a database or a data store refused, was busy, or was not there",
    "broker": "a message broker or a stream refused, was busy, or was not there",
    "mail": "a mail server refused or could not take a message",
    "filesystem": "a file, a directory or a disk",
    "process": "a process ended, was killed, ran out of time or out of handles",
    "memory": "there was not enough memory",
    "code": "the program, its configuration or the data that it was given",
    "task": "the task itself said what it deserves",
    "unknown": "no rule covers it",
}


class Finding(NamedTuple):
    """One cell of a table: what a class or a code deserves."""

    kind: Kind
    category: str
    hint: str
    max_retries: int | None = None

    def verdict(self, rule: str, retry_after: float | None = None) -> Verdict:
        """This finding as the verdict of *rule*, with the delay that the server asked for."""
        hint = self.hint
        if retry_after is not None:
            joint = ": " if self.kind is Kind.RATE_LIMITED else "; "
            hint = f"{hint}{joint}the server asked for {retry_after:.12g} s"
        return Verdict(self.kind, rule, self.category, hint, retry_after, self.max_retries)


def transient(category: str, hint: str, max_retries: int | None = None) -> Finding:
    """Retry it: the next attempt may succeed."""
    return Finding(Kind.TRANSIENT, category, hint, max_retries)


def limited(category: str, hint: str = "rate limited") -> Finding:
    """Retry it later: the other side asked for patience."""
    return Finding(Kind.RATE_LIMITED, category, hint)


def permanent(category: str, hint: str) -> Finding:
    """Do not retry it."""
    return Finding(Kind.PERMANENT, category, hint)
