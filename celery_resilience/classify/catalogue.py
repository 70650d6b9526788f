"""The tables as rows, for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from celery_resilience.classify import http, wrappers
from celery_resilience.classify import plan as plans
from celery_resilience.classify.family import Family
from celery_resilience.classify.finding import Finding
from celery_resilience.classify.libraries import python as code
from celery_resilience.classify.verdict import Kind

__all__ = ["Row", "table"]


@dataclass(frozen=True)
class Row:
    """One line of a table: what one class or one code deserves."""

    #: The library, or the few that are built alike.
    family: str
    #: Where the classifier looks in its exceptions.
    reads: str
    #: What the line is about: ``class``, ``sqlstate``, ``status`` ...
    what: str
    #: The class name or the code.
    key: str
    kind: Kind
    category: str
    hint: str
    max_retries: int | None


_HTTP = Family(
    name="any HTTP answer",
    roots=frozenset(),
    reads="the first of `status_code`, `http_status`, `status`, `response.status_code`, "
    "`meta.status`, `resp.status`; headers from where the status was",
    codes={
        "status": http.STATUSES,
        "header x-should-retry, stripe-should-retry": http.VETO,
    },
)


def table() -> Iterator[Row]:
    """Every line of every table, family by family in the order in which they are asked."""
    for family in (wrappers.GROUP, _HTTP, *plans.LIBRARIES, *plans.BUILTINS, code.EXITS):
        yield from _rows(family, "class", family.classes)
        for what, findings in family.codes.items():
            yield from _rows(family, what, findings)


def _rows(
    family: Family, what: str, findings: Mapping[str, Finding] | Mapping[object, Finding]
) -> Iterator[Row]:
    for key, finding in findings.items():
        yield Row(
            family.name,
            family.reads,
            what,
            str(key),
            finding.kind,
            finding.category,
            finding.hint,
            finding.max_retries,
        )
