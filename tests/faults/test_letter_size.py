"""A message whose own headers leave no room for ours is a letter all the same."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from amqp.serialization import dumps

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.policy.decision import Reason

#: What RabbitMQ takes in one frame.
_FRAME = 131_072


@pytest.mark.parametrize("size", [0, 50_000, 90_000, 119_000, 125_000, 500_000])
def test_letter_fits_into_a_frame_and_keeps_the_message(size: int) -> None:
    """Packed or not: what is read is what was received."""
    headers = {"task": "t", "id": "1", "large": "x" * size, "at": datetime.now(timezone.utc)}
    message = Envelope(b"\x00body", "application/json", "utf-8", headers, {"priority": 3}, "work")
    error = ErrorRecord("E", "m" * 2_000, traceback="t" * 24_000)
    letter = DeadLetter.write(Reason.PERMANENT, message, error=error)
    travels = letter.to_envelope()
    assert len(dumps("F", [dict(travels.headers)])) < _FRAME - 1_000
    read = DeadLetter.from_envelope(travels)
    assert (read.id, read.reason, read.envelope) == (letter.id, letter.reason, message)
    assert read.replayed().headers["large"] == headers["large"]
