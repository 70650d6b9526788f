"""Log lines, errors, help texts and pages name the acting party, in the words of the glossary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_resilience"
#: What a text may not say, and what it says instead.
INSTEAD = {
    r"nobody|somebody|anybody|everybody|whoever": "the party: a worker, a command, a consumer",
    r"anew": "again, or what is done: declared again, rewritten",
    r"mend(s|ed|ing)?": "fix",
    r"lets? (it |them )?go( of)?": "ack",
    r"(gives?|given|giving) (it |them )?back": "requeue, return",
    r"puts? back": "requeue",
    r"suspects?|suspected": "redelivered",
    r"burial|looker|keeper": "what the glossary calls it",
}
#: Pages that quote what 0.1.0 said, or that keep its headings for links of old.
OF_OLD = {"upgrading.md", "operating.md"}
#: Words that pages quote: a file of the tutorial, a message in an example, the rule itself.
QUOTED = re.compile(r'"nobody"|\'nobody\'|touch nobody|nobody answers|\*nobody\* or \*somebody\*')
#: Rules that letters keep, and names of JSON: they never change.
KEPT = {"put back by the task: Reject", "the task put its message back", "given back", "suspected"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a module that are no docstrings, each with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def complaints(text: str) -> list[str]:
    return [
        f"{found[0]!r}: {instead}"
        for words, instead in INSTEAD.items()
        for found in re.finditer(rf"\b({words})\b", text, re.IGNORECASE)
    ]


def test_texts_of_the_package_name_the_acting_party() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {complaint}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in texts(path)
        if text not in KEPT
        for complaint in complaints(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "page",
    [
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING")),
    ],
    ids=lambda page: page.name,
)
def test_page_names_the_acting_party(page: Path) -> None:
    if page.name not in OF_OLD:
        assert complaints(QUOTED.sub("", page.read_text(encoding="utf-8"))) == []


def test_word_of_old_is_found() -> None:
    assert complaints("it is given back, and nobody waits") != []
    assert complaints("it is requeued, and no worker waits") == []
