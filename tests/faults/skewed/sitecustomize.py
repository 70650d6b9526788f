"""Imported by Python itself when it starts: a clock that is wrong by CLOCK_SKEW seconds."""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

_skew = float(os.environ.get("CLOCK_SKEW", "0"))
_time, _datetime = time.time, datetime.datetime


class Skewed(_datetime):  # type: ignore[misc,valid-type]
    """What ``datetime.now`` is made of does not ask ``time.time``."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().now(tz) + datetime.timedelta(seconds=_skew)

    @classmethod
    def utcnow(cls) -> Any:
        return super().utcnow() + datetime.timedelta(seconds=_skew)


if _skew:
    time.time = lambda: _time() + _skew
    datetime.datetime = Skewed  # type: ignore[misc]
