"""An id that was typed means one thing, or is refused."""

from __future__ import annotations

import pytest

from celery_resilience.ids import AmbiguousId, NoSuchId, meant

THINGS = ["aaaa1", "aaaa2", "bbbb1", "bbbb1", "bbbb11"]


def find(*ids: str, unique: bool = False) -> list[str]:
    return meant(ids, THINGS, str, what="thing", where="the box", unique=unique)


def test_an_id_or_its_beginning():
    assert find("aaaa2") == ["aaaa2"]
    assert find("aaaa2", "aaaa1") == ["aaaa2", "aaaa1"]
    assert find("bbbb11") == ["bbbb11"]


def test_all_that_have_the_id_are_meant_unless_it_is_unique():
    assert find("bbbb1") == ["bbbb1", "bbbb1"]
    assert find("bbbb1", unique=True) == ["bbbb1"]


def test_two_beginnings_may_mean_the_same():
    assert find("aaaa1", "aaaa1") == ["aaaa1"]
    assert meant(["abcd", "abcde"], ["abcdef"], str, what="t", where="w") == ["abcdef"]


def test_what_is_too_short_not_there_or_ambiguous_is_refused():
    with pytest.raises(NoSuchId, match="'aaa' is too short for an id: at least 4"):
        find("aaa")
    with pytest.raises(NoSuchId, match="no thing cccc in the box"):
        find("aaaa1", "cccc")
    with pytest.raises(AmbiguousId, match="aaaa is how several ids begin: aaaa1, aaaa2"):
        find("aaaa")


def test_a_search_for_what_is_unique_ends_when_it_is_found():
    seen = []

    def things():
        for thing in THINGS:
            seen.append(thing)
            yield thing

    meant(["aaaa1"], things(), str, what="t", where="w", unique=True)
    assert seen == ["aaaa1"]
