"""What the classifier found out about an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Kind", "Verdict"]


class Kind(str, Enum):
    """What an exception says about the next attempt."""

    TRANSIENT = "transient"  #: the next attempt may succeed: a retry is worth its cost
    RATE_LIMITED = "rate_limited"  #: the other side asked for patience: retry later, uncounted
    PERMANENT = "permanent"  #: no retry can help
    EXPECTED = "expected"  #: the task lists it in ``throws``: a failure, but not a dead letter
    UNKNOWN = "unknown"  #: nothing is known: the policy decides, and by default it retries

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Verdict:
    """The classifier's finding about one exception."""

    kind: Kind
    #: The rule that decided, for a person and for grep: ``http.status.503``.
    rule: str
    #: Where the trouble lies: ``http network database filesystem process code ...``.
    category: str
    #: One line for a person: "rate limited: the server asked for 12 s".
    hint: str
    #: The least seconds to wait, as the other side asked for; None when it did not ask.
    retry_after: float | None = None
    #: A limit on retries lower than the policy's, None for the policy's own.
    max_retries: int | None = None
