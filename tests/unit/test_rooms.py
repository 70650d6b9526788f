"""What ``make house`` prints."""

from __future__ import annotations

import re

import pytest

from tests.house import circles, main


def test_modules_that_import_one_another_are_a_circle() -> None:
    found = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "f"), ("f", "e"), ("f", "a")]
    assert circles(found) == [["a", "b", "c"], ["e", "f"]]


def test_house_is_printed_with_its_upward_imports(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    said = capsys.readouterr().out
    assert re.search(r"^floor  1: errors +1 files", said, re.MULTILINE)
    last = said.splitlines()[-1]
    assert re.fullmatch(
        r"\d+ rooms in \d+ files, \d+ lines, \d+ imports, 0 upward, 0 circles", last
    )
