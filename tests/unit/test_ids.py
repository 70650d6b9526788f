"""An id that was typed means one thing, or is refused."""

from __future__ import annotations

import pytest

from celery_resilience.operate.ids import (
    AmbiguousId,
    NoSuchId,
    length_shown,
    resolve_ids,
    shortened,
)

THINGS = ["aaaa1", "aaaa2", "bbbb1", "bbbb1", "bbbb11"]


def find(*ids: str, unique: bool = False) -> list[str]:
    return resolve_ids(ids, THINGS, str, what="thing", where="the box", unique=unique)


def test_id_or_its_beginning_is_found():
    assert find("aaaa2") == ["aaaa2"]
    assert find("aaaa2", "aaaa1") == ["aaaa2", "aaaa1"]
    assert find("bbbb11") == ["bbbb11"]


def test_id_means_all_that_have_it_unless_it_is_unique():
    assert find("bbbb1") == ["bbbb1", "bbbb1"]
    assert find("bbbb1", unique=True) == ["bbbb1"]


def test_beginnings_of_one_id_find_it_once():
    assert find("aaaa1", "aaaa1") == ["aaaa1"]
    assert resolve_ids(["abcd", "abcde"], ["abcdef"], str, what="t", where="w") == ["abcdef"]


def test_beginning_that_only_one_has_is_enough():
    assert resolve_ids(["c"], ["aaaa", "cccc"], str, what="t", where="w") == ["cccc"]


def test_id_that_is_empty_unknown_or_ambiguous_is_refused():
    with pytest.raises(NoSuchId, match="empty id of a thing"):
        find("")
    with pytest.raises(NoSuchId, match="no thing cccc in the box"):
        find("aaaa1", "cccc")
    with pytest.raises(AmbiguousId, match="aaaa matches several ids: aaaa1, aaaa2"):
        find("aaaa")


def test_search_for_a_unique_id_ends_when_it_is_found():
    seen = []

    def things():
        for thing in THINGS:
            seen.append(thing)
            yield thing

    resolve_ids(["aaaa1"], things(), str, what="t", where="w", unique=True)
    assert seen == ["aaaa1"]


LETTERS = [("aa01", "task-1", 5.0), ("bb02", "task-2", 3.0), ("cc03", "task-1", 4.0),
           ("dd04", "bb0", 1.0), ("dd04.2", "bb0", 1.0)]  # fmt: skip


def letter(*ids: str) -> list[str]:
    found = resolve_ids(
        ids, LETTERS, lambda one: one[0], what="letter", where="w", unique=True,
        task_of=lambda one: one[1], at=lambda one: one[2],
    )  # fmt: skip
    return [one[0] for one in found]


def test_id_of_a_task_means_its_newest_letter():
    assert letter("task-1") == ["aa01"]
    assert letter("task-2") == ["bb02"]
    assert letter("aa01", "task-1") == ["aa01"], "the same one, told twice"
    with pytest.raises(AmbiguousId, match="task-1, task-2"):
        letter("task")


def test_id_of_a_letter_comes_before_one_of_a_task():
    assert letter("bb0") == ["dd04.2"], "a whole task id before the beginning of a letter's"
    with pytest.raises(AmbiguousId, match="bb0, bb02"):
        letter("bb")
    assert letter("task-2"[:-1] + "2") == ["bb02"]


def test_equal_ids_have_a_number():
    assert letter("dd") == ["dd04"]
    assert letter("dd04.2") == letter("dd.2") == ["dd04.2"]
    with pytest.raises(NoSuchId):
        letter("dd.3")


def test_length_shown_tells_all_ids_apart():
    ids = ["0123456789ab", "0123456789cd", "ffffffffffff", "ffffffffffff.2"]
    length = length_shown(ids)
    assert [shortened(one, length) for one in ids] == [
        "0123456789a", "0123456789c", "fffffffffff", "fffffffffff.2",
    ]  # fmt: skip
    assert length_shown(["a" * 32]) == length_shown([]) == 8
    assert length_shown(["a" * 10, "a" * 12]) == 11
