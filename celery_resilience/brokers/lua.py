"""The scripts that run inside Redis: each is one step that nothing can come in between."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

__all__ = ["KEYS", "lua"]

#: What every key of ours begins with, behind the connection's own ``global_keyprefix``.
KEYS = "celery_resilience:"


@lru_cache
def lua(name: str, package: str = __package__) -> str:
    """The text of the script *name*, which lies in *package*."""
    return files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8")
