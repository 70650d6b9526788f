"""The architecture page: what it names is there, and its walks rise where it says so alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_layers import LAYERS, PACKAGE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALKS = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.M)[1:])
STEP = re.compile(r"^\d+\. `([\w/]+)`:.*(?:\n   .*)*", re.M)


def test_floors_are_the_packages_in_their_order() -> None:
    assert re.findall(r"^\| \d+ \| `(\w+)` \|", PAGE, re.M) == LAYERS


def test_files_that_are_named_exist() -> None:
    named = re.findall(rf"`((?:{'|'.join(LAYERS)})(?:/\w+)+)`", PAGE)
    assert len(named) > 30
    missing = [name for name in named if not (PACKAGE / f"{name}.py").is_file()]
    assert missing == []


@pytest.mark.parametrize("title", WALKS)
def test_walk_goes_down_or_says_why_not(title: str) -> None:
    steps = [(step[1], "↑" in step[0]) for step in STEP.finditer(WALKS[title])]
    assert len(steps) > 10
    floors = [LAYERS.index(name.partition("/")[0]) for name, _ in steps]
    rises = [n > 0 and floor > floors[n - 1] for n, floor in enumerate(floors)]
    assert [said for _, said in steps] == rises


def test_picture_has_every_step() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    steps = sum(len(STEP.findall(walk)) for walk in WALKS.values())
    assert len(re.findall(r"<circle ", picture)) == steps
