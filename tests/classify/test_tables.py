"""The tables themselves, and that reading them imports nobody."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

from celery_resilience.classify import CATEGORIES, Row, table
from celery_resilience.classify import plan as plans
from celery_resilience.classify.plan import BUILTINS, LIBRARIES
from celery_resilience.classify.verdict import Kind

PACKAGE = Path(plans.__file__).parent
ROOTS = {root for family in (*LIBRARIES, *BUILTINS) for root in family.roots}


def test_every_line_says_something_from_the_closed_lists() -> None:
    rows = list(table())
    assert len(rows) > 500
    for row in rows:
        assert isinstance(row, Row)
        assert row.family
        assert row.reads
        assert row.key
        assert row.category in CATEGORIES
        assert row.kind in (Kind.TRANSIENT, Kind.RATE_LIMITED, Kind.PERMANENT)
        assert row.hint
        assert not row.hint.endswith(".")
        assert row.max_retries is None or row.max_retries > 0


def test_lines_are_there_once() -> None:
    lines = Counter((row.family, row.what, row.key) for row in table())
    assert [line for line, times in lines.items() if times > 1] == []


def test_root_module_belongs_to_one_family() -> None:
    roots = Counter(root for family in LIBRARIES for root in family.roots)
    assert [root for root, times in roots.items() if times > 1] == []
    assert "builtins" not in roots


def test_modules_import_the_standard_library_and_their_own_floor_only() -> None:
    allowed = (
        "celery_resilience.classify",
        "celery_resilience.errors",
        "celery_resilience.classify.verdict",
    )
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root = name.partition(".")[0]
                assert root in sys.stdlib_module_names or name.startswith(allowed), (path, name)


def test_importing_the_classifier_imports_no_library() -> None:
    """The package's own __init__ is left out: it is the surface, and may need Celery."""
    third_party = sorted(ROOTS - set(sys.stdlib_module_names) - {"celery_resilience"})
    program = f"""
import sys, types
package = types.ModuleType("celery_resilience")
package.__path__ = [{str(PACKAGE.parent)!r}]
sys.modules["celery_resilience"] = package
from celery_resilience.classify import classify, table
classify(ConnectionError("x")), classify(ValueError(TimeoutError())), list(table())
print([name for name in {third_party!r} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
