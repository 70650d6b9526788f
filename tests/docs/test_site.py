"""The site of ``make docs``: every page is found in it, under what a reader needs it for.

That it is built without a warning is what ``make docs`` says, which CI runs.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import celery_resilience

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_in_the_navigation_once(conf: ModuleType) -> None:
    pages = [page for pages in conf.NAVIGATION.values() for page in pages]
    assert len(pages) == len(set(pages))
    own = {page for page in pages if not page.startswith("/")}
    assert own == {page.stem for page in DOCS.glob("*.md")} - {"README", *conf.MOVED}
    for page in pages:
        path = ROOT / page[1:] if page.startswith("/") else DOCS / page
        assert path.with_suffix(".md").is_file(), page


def test_navigation_is_by_need(conf: ModuleType) -> None:
    needs = ["Tutorial", "How-to guides", "Reference", "Explanation", "Upgrading", "Glossary"]
    assert list(conf.NAVIGATION)[: len(needs)] == needs


def test_public_names_are_in_the_api_reference() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"auto\w+:: celery_resilience\.(?:\w+\.)*(\w+)", text))
    documented |= set(celery_resilience.errors.__all__)  # type: ignore[attr-defined]
    assert set(celery_resilience.__all__) - documented == set()
