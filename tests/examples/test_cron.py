"""``python -m examples.cron``: three jobs under celery beat, and their back-offs."""

from __future__ import annotations

import re

import pytest

from celery_resilience.policy.schedule import schedule
from tests.examples.command import Example


@pytest.mark.parametrize(
    ("name", "waits"),
    [("EXPONENTIAL", [1, 2, 4, 8]), ("LINEAR", [1, 2, 3, 4]), ("FIXED", [1, 1, 1, 1])],
)
def test_backoffs_are_those_of_the_wrapper_that_they_replace(monkeypatch, name, waits):
    monkeypatch.setenv("BROKER_URL", "memory://")
    monkeypatch.setenv("BACKEND_URL", "cache+memory://")
    from examples.cron import tasks

    policy = getattr(tasks, name)
    assert policy.max_retries == 3
    assert [(w.shortest, w.worst) for w in schedule(policy, 4).waits] == [(w, w) for w in waits]


def test_each_job_ends_as_it_deserves_and_none_is_lost():
    ended = Example("examples.cron").ended()
    out = ended.output
    assert ended.code == 0
    assert ended.left == []
    counts = {
        job: (int(sent), int(succeeded), int(dead))
        for job, sent, succeeded, dead in re.findall(
            r"^(\w+): sent (\d+), succeeded (\d+), dead letters (\d+)$", out, re.MULTILINE
        )
    }
    assert set(counts) == {"check_price", "hunt_trends", "watch_releases"}
    for sent, succeeded, dead in counts.values():
        assert succeeded >= 2
        assert sent == succeeded + dead

    # An HTTP job waits as its policy says, and on a 429 as the shop says.
    assert re.search(r"check_price\[\w+\]: attempt \d ended \(.*429\): again in [12]\.\d+ s", out)
    assert re.search(r"check_price\[\w+\]: attempt \d ended \(TimeoutError, ", out)
    assert counts["check_price"][2] == 0

    # A source may fail for good; where two do, the whole is tried once more.
    assert re.search(r"\d x fetch_trends: exhausted, .* reset by peer", out)
    assert "1 x fetch_trends: permanent, HTTP Error 404: Not Found" in out
    assert len(re.findall(r"hunt_trends\[\w+\]: attempt \d ended \(\S+TransientError,", out)) == 1
    assert counts["hunt_trends"][2] == 0

    # A script is judged by its exit code.
    assert re.search(r"watch_releases\[\w+\]: attempt 1 ended \(.*exit\.75\): again in 1\.0", out)
    assert re.search(r"1 x watch_releases: permanent, .* returned non-zero exit status 1", out)
    assert counts["watch_releases"][2] == 1
