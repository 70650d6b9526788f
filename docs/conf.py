"""How ``make docs`` makes a site of these pages: Sphinx with MyST and furo.

The source folder is the checkout, so that links between its folders hold. What a reader needs a
page for decides where it is found (``NAVIGATION``); the pages themselves say nothing of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import celery_resilience

ROOT = Path(__file__).parents[1]

project = "celery_resilience"
author = "the celery_resilience authors"
copyright = f"2026, {author}"
release = version = celery_resilience.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/README"
include_patterns = ["docs/*.md", "benchmarks/*.md", "examples/**.md", "*.md"]
#: The README is for those who look at the code; the rest is not looked into at all.
exclude_patterns = ["README.md", ".*", "build", "dist", "celery_resilience", "tests"]

#: The sidebar: what a reader needs, and the pages for it.
NAVIGATION: dict[str, list[str]] = {
    "Tutorial": ["tutorial"],
    "How-to guides": [
        "alerting", "dead-letters", "scheduled-retries", "redis", "rabbitmq", "deployment",
        "security", "coming-from", "/examples/README",
    ],
    "Reference": [
        "policies", "settings", "commands", "classification", "api", "keys-and-queues", "events",
        "differences", "what-happens-when", "limits",
    ],
    "Explanation": ["architecture", "decided-where", "why", "/benchmarks/README"],
    "Upgrading": ["upgrading", "/CHANGELOG"],
    "Glossary": ["glossary"],
    "Project": ["/CONTRIBUTING", "fault-rows", "/SECURITY"],
}  # fmt: skip
#: Pages that belong below one of these.
BELOW = {
    "examples/README": ["cron/README", "django_shop/README", "song/README"],
}

#: Pages that only say where their sections are now, for links of old.
MOVED = ["operating"]

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# Inline code in docstrings is written both ways.
default_role = "code"
# An option is written with two hyphens.
smartquotes = False

autodoc_member_order = "groupwise"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autoclass_content = "class"

html_theme = "furo"
html_title = f"celery_resilience {release}"
html_copy_source = False


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_navigation)
    app.connect("build-finished", _lead_to_the_first_page)


def _add_navigation(app: Any, name: str, source: list[str]) -> None:
    """Append to the page *name* what the sidebar shows below it."""
    if name == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += _toctree(pages, caption)
    elif name in BELOW:
        source[0] += _toctree(BELOW[name])
    elif name.removeprefix("docs/") in MOVED:
        source[0] = f"---\norphan: true\n---\n{source[0]}"


def _toctree(pages: list[str], caption: str = "") -> str:
    options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return f"\n\n```{{toctree}}\n{options}\n" + "\n".join(pages) + "\n```\n"


def _lead_to_the_first_page(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")
