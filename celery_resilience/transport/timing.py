"""When a Redis channel of ours fetches, and why: states, and one table of their transitions."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ASKED", "EMPTIED", "EXPECTED", "NOTIFIED", "Cause", "FetchTiming"]

#: How long to wait after the server refused to hand out messages, in seconds.
_REFUSED = 1.0


class Cause(IntEnum):
    """Why the next fetch is made."""

    #: Nothing is known to be there; it is fetched all the same now and then.
    SAFETY = 0
    #: There may be something: more than was taken, or what no notification will tell of.
    LIKELY = 1
    #: The server has told of something.
    TOLD = 2


# One table: the cause after each event, of one that was SAFETY, LIKELY, TOLD before. What has
# become likely, or was told, while an answer was on its way may be newer than the answer.

#: A notification has come.
NOTIFIED = Cause.TOLD, Cause.TOLD, Cause.TOLD
#: There may be messages for another reason, and no notification may come.
EXPECTED = Cause.LIKELY, Cause.LIKELY, Cause.TOLD
#: The server was asked for messages.
ASKED = Cause.SAFETY, Cause.SAFETY, Cause.SAFETY
#: It has handed out all that there was.
EMPTIED = Cause.SAFETY, Cause.LIKELY, Cause.TOLD


class FetchTiming:
    """When one channel fetches; all times are by the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.cause = Cause.LIKELY
        #: The cause of the last fetch.
        self.asked_for = Cause.LIKELY
        #: Until then nothing is asked, for the server has refused to answer.
        self.refused_until = 0.0
        #: When the last fetch was asked for; when the next is made for its cause, and for safety.
        self._asked_at = self._not_before = self._safety_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether there is a reason to fetch *now*."""
        known = self.cause is not Cause.SAFETY and now >= self._not_before
        return known or now >= self._safety_at

    @property
    def due_at(self) -> float:
        """When the next fetch is due if nothing happens."""
        known = self._safety_at if self.cause is Cause.SAFETY else self._not_before
        return max(min(known, self._safety_at), self.refused_until)

    def notified(self, now: float, pause: float) -> None:
        """The server has told of something; others go first for *pause* seconds."""
        self.cause = NOTIFIED[self.cause]
        self._not_before = now + pause

    def expected(self) -> None:
        """There may be something, and no notification may come."""
        self.cause = EXPECTED[self.cause]
        self._not_before = 0.0

    def asked(self, now: float, patience: float) -> None:
        """The server was asked for messages; it is asked again after *patience* seconds."""
        self.asked_for, self._asked_at, self._safety_at = self.cause, now, now + patience
        self.cause = ASKED[self.cause]

    def answered(self, more: bool, every: float | None) -> None:
        """The server has answered: whether there may be *more*; it is asked *every* so many seconds
        where it sends no notifications."""
        after = EMPTIED if every is None and not more else EXPECTED
        self.cause = after[self.cause]
        if more:
            self._not_before = 0.0
        elif every is not None:
            self._not_before = self._asked_at + every

    def refused(self, now: float) -> None:
        """The server has refused to hand out messages."""
        self.cause = EXPECTED[self.cause]
        self.refused_until = now + _REFUSED
