"""Every family and every trap, on real exceptions of the real libraries."""

from __future__ import annotations

import pytest

from celery_resilience.classify import CATEGORIES, classify
from tests.classify import cases_builtin, cases_clouds, cases_data, cases_http, cases_services
from tests.classify.case import NOW, Case

CASES = [
    *cases_builtin.CASES,
    *cases_http.CASES,
    *cases_services.CASES,
    *cases_clouds.CASES,
    *cases_data.CASES,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_exception_gets_the_verdict_it_deserves(case: Case) -> None:
    verdict = classify(case.factory(), now=NOW)
    assert (verdict.kind, verdict.category) == (case.kind, case.category), verdict
    assert verdict.rule == case.rule or not case.rule, verdict
    assert verdict.retry_after == (
        None if case.retry_after is None else pytest.approx(case.retry_after)
    )
    assert verdict.max_retries == case.max_retries
    assert verdict.category in CATEGORIES
    assert verdict.hint


def test_table_of_cases_is_as_long_as_it_was() -> None:
    """A case that falls out of a list by accident is missed here."""
    assert len(CASES) >= 560
