"""What an index of packages shows of this one: the README with links that lead somewhere there.

Where the project lives is said when it is built::

    PROJECT_URL=https://forge.example/owner/celery_resilience make build

Links into the repository become absolute then, and the metadata have their URLs. Without it they
become plain text: a link that leads nowhere is worse than none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?![a-z]+:)[^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


class Metadata(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        home, version = os.environ.get("PROJECT_URL", "").rstrip("/"), metadata["version"]
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": for_an_index(text, home, f"v{version}"),
        }
        metadata["urls"] = urls(home) if home else {}


def urls(home: str) -> dict[str, str]:
    """The places that the metadata name, of a project that lives at *home*."""
    return {
        "Homepage": home,
        "Documentation": f"{home}/blob/main/docs/README.md",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
        "Issues": f"{home}/issues",
        "Source": home,
    }


def for_an_index(text: str, home: str, tag: str) -> str:
    """*text* with its links into the repository leading to *tag* at *home*; "": without them."""

    def link(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if home:
            target = target if target.startswith("#") else f"{home}/{_kind(image)}/{tag}/{target}"
            return f"{image}[{words}]({target})"
        return "" if image else words

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _kind(image: str) -> str:
    return "raw" if image else "blob"
