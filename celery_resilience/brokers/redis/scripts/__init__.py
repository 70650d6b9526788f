"""The scripts that run inside Redis: each is one step that nothing can come in between.

Redis undoes nothing of a script that fails, and what fails is repeated. So each is all or nothing:
what can fail (a key of another type, a right that is missing, memory) is tried by a command that
changes nothing, before the first one that does; or the original is removed right behind its copy,
and what comes then may fail.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

__all__ = ["KEYS", "lua"]

#: What every key of ours begins with, behind the connection's own ``global_keyprefix``.
KEYS = "celery_resilience:"


@lru_cache
def lua(name: str, package: str = __package__) -> str:
    """The text of the script *name*, which lies in *package*, between its begin and its end."""
    return "".join((_read("begin", __package__), _read(name, package), _read("end", __package__)))


def _read(name: str, package: str) -> str:
    return files(package).joinpath(f"{name}.lua").read_text(encoding="utf-8")
