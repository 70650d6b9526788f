"""Messages that Celery takes for a task's, and stumbles over when nobody catches it any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.exceptions import InvalidTaskError

__all__ = ["refuse_malformed"]


def refuse_malformed(fields: Mapping[str, Any], payload: Any) -> None:
    """Raise InvalidTaskError for what would end the worker later, or, in a pool of threads, fail
    unseen and never let the message go."""
    args, kwargs, embed = payload
    # Every message comes by here, and nearly all of them look like this.
    if (
        type(args) in _SEQUENCES
        and type(kwargs) is dict
        and type(embed) is dict
        and fields.get("timelimit") in _NO_LIMITS
        and not (fields.get("stamped_headers") or fields.get("stamps"))
    ):
        return
    for holds, what in (
        (_are_limits(fields.get("timelimit") or (None, None)), "timelimit"),
        (_are_stamps(fields), "stamps"),
        (isinstance(args, (list, tuple)), "args"),
        (isinstance(kwargs, dict), "kwargs"),
        (isinstance(embed or {}, dict), "embedded signatures"),
    ):
        if not holds:
            raise InvalidTaskError(f"its {what} are not what they should be")


_SEQUENCES = (list, tuple)
_NO_LIMITS = ([None, None], (None, None), None)


def _are_limits(limits: Any) -> bool:
    try:
        hard, soft = limits
    except (TypeError, ValueError):
        return False
    return all(each is None or isinstance(each, (int, float)) for each in (hard, soft))


def _are_stamps(fields: Mapping[str, Any]) -> bool:
    names = fields.get("stamped_headers") or []
    listed = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return listed and isinstance(fields.get("stamps") or {}, dict)
