"""``python -m examples.django_shop``: a Django project whose orders are charged."""

from __future__ import annotations

import re

from tests.examples.command import Example


def test_django_project_retries_buries_and_replays():
    """What is committed is charged once, in spite of the bank; what is rolled back never is."""
    ended = Example("examples.django_shop", "django").ended()
    out = ended.output
    assert ended.code == 0
    assert ended.left == []
    for told in (
        r"charge\[\w+\]: attempt 1 ended \(urllib.error.HTTPError, .*503\): again in",
        r"charge\[\w+\]: attempt 3 ended \(urllib.error.HTTPError, .*429\): again in",
        r"charge\[\w+\]: dead letter \w{32} in examples.shop.dead: permanent",
        r"\$ celery -A shop dlq replay \w{8,32} --yes\npublished 1, skipped 0, failed 0",
        r"alice: paid, says the database\nbob: paid, says the database\n",
        r"bob: 20.00, says the bank",
    ):
        assert re.search(told, out), told
    assert "No dead letters in examples.shop.dead." in out
    assert "carol's order was taken back" in out
    assert "carol:" not in out
