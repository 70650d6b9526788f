"""A dead letter: a message as it was received, and why it died.

The letter travels as that message plus one header, so that any program that can read the queue can
read the letter, and a replay only has to remove the header. JSON version 1; at most 64 KB.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from kombu.utils.json import dumps, loads

from celery_resilience.messages.envelope import Envelope, seconds_until
from celery_resilience.messages.error_record import MESSAGE, ErrorRecord
from celery_resilience.messages.headers import HEADER, MOST_HEADERS, compact, has_waited
from celery_resilience.messages.history import History, clipped, finite
from celery_resilience.messages.identity import LENGTH, Identity, digest_of, new_id
from celery_resilience.policy.decision import Reason

__all__ = ["DeadLetter", "written_anew"]

#: The most that the header may weigh, in bytes.
_HEADER = 60_000
#: The content type of a message that travels as the body of its letter.
_PACKED = "application/x-celery-resilience"


@dataclass(frozen=True)
class DeadLetter:
    """A message that no retry will be made of, and its whole story."""

    #: 128 random bits in hex; of what came without a header of ours the first of its digest.
    id: str
    reason: Reason
    #: When it died, in seconds since the epoch.
    at: float
    #: The message as it was received; its headers without ours.
    envelope: Envelope
    history: History = field(default_factory=History)
    error: ErrorRecord = field(default_factory=ErrorRecord)
    #: The classifier's verdict: its kind, rule, category and hint. Empty where none was asked.
    kind: str = ""
    verdict_rule: str = ""
    category: str = ""
    hint: str = ""
    #: What decided: "rule 2 (Timeout)", "classifier: http.status.400".
    rule: str = ""
    worker: str = ""
    app_version: str = ""
    #: A hash of all that makes it this letter and no other; empty until it lies in a queue.
    digest: str = field(default="", compare=False)

    @classmethod
    def write(cls, reason: Reason, envelope: Envelope, **facts: Any) -> DeadLetter:
        """A new letter about *envelope*; *facts* are any of the other fields."""
        return cls(
            id=new_id(),
            reason=reason,
            at=facts.pop("at", None) or time.time(),
            envelope=envelope.with_header(None),
            **facts,
        )

    @property
    def task(self) -> str:
        """The task's name; empty where the message did not tell."""
        return self.envelope.text_field("task")

    @property
    def task_id(self) -> str:
        """The task's id; empty where the message did not tell."""
        return self.envelope.text_field("id")

    @property
    def arguments(self) -> str:
        """The arguments as the sender let them be shown: what it masked stays masked."""
        return self.envelope.masked_arguments()

    @property
    def group(self) -> str:
        """Letters with the same one have the same cause: error type, innermost own frame."""
        return _short_hash(self.error.error or self.reason.value, self.error.frame)

    @property
    def fingerprint(self) -> str:
        """Those of one task among them: task, error type, innermost own frame."""
        return _short_hash(self.task, self.error.error or self.reason.value, self.error.frame)

    # On its way

    def to_envelope(self, packed: bool = False) -> Envelope:
        """The message that is put into the dead-letter queue.

        Where its own headers leave no room for ours it travels *packed*: all of it as the body.
        """
        own = self.envelope.headers_size()
        room = min(_HEADER, MOST_HEADERS - own)
        text = self._dumps()
        for part in (4_000, 1_000, 0):
            if _weighs(text) > room:
                # Of a text that UTF-8 can't say a character may weigh 12 bytes.
                most = 200 + part // 4
                texts: Any = {name: clipped(getattr(self, name), most) for name in _TEXTS}
                error, history = self.error.clipped(part), self.history.clipped(part)
                text = replace(self, error=error, history=history, **texts)._dumps()
        return (
            self._packed(text)
            if packed or _weighs(text) > room
            else self.envelope.with_header(text)
        )

    def _packed(self, text: str) -> Envelope:
        message = self.envelope
        told = {"headers": dict(message.headers), "properties": dict(message.properties)}
        return Envelope(
            body=dumps({**message.to_json(), **told}, skipkeys=True).encode(),
            content_type=_PACKED,
            content_encoding="utf-8",
            headers={HEADER: text},
            properties=self.envelope.properties,
            queue=self.envelope.queue,
        )

    def _dumps(self) -> str:
        facts = {
            "id": self.id,
            "reason": self.reason.value,
            "at": self.at,
            "error": asdict(self.error),
            "queue": self.envelope.queue,
            "exchange": self.envelope.exchange,
            "routing_key": self.envelope.routing_key,
            **{name: getattr(self, name) for name in _TEXTS},
        }
        data = {**self.history.to_json(), "letter": facts}
        return compact(data)

    @classmethod
    def from_envelope(cls, envelope: Envelope) -> DeadLetter:
        """The letter in a message from a dead-letter queue.

        A message without a letter's header is a letter too: a broker's own dead-lettering, or a
        queue that went while a retry waited for it, put it there (reason ``unroutable``).
        """
        text = envelope.headers.get(HEADER)
        data = _object(text)
        facts = data.get("letter")
        bare = envelope.with_header(None)
        if envelope.content_type == _PACKED:
            bare = _unpacked(envelope.body) or bare
        history = History.from_json(data)
        known = Identity.read(data, envelope)
        digest = str(known["digest"]) if known else digest_of(envelope)
        if not isinstance(facts, Mapping):
            name = str(known["id"])[:64] if known else digest[:LENGTH]
            gone = has_waited(envelope.exchange) and history.queue
            return cls(
                id=name,
                reason=Reason.UNROUTABLE,
                at=0.0,
                envelope=replace(bare, queue=history.queue or bare.queue),
                history=_without_itself(history, name),
                digest=digest,
                rule=f"its queue {gone} has gone" if gone else "it came without a letter's header",
            )
        said = {name: clipped(str(facts.get(name) or ""), MESSAGE) for name in _TEXTS}
        name = str(facts.get("id") or "")[:64] or digest[:LENGTH]
        return cls(
            id=name,
            digest=digest,
            reason=_reason(facts.get("reason")),
            at=finite(facts.get("at")) or 0.0,
            envelope=replace(
                bare,
                queue=str(facts.get("queue") or ""),
                exchange=str(facts.get("exchange") or ""),
                routing_key=str(facts.get("routing_key") or ""),
            ),
            history=_without_itself(history, name),
            error=ErrorRecord.from_json(facts.get("error")),
            **said,
        )

    def replayed(self) -> Envelope:
        """The message to publish again: its retries at 0, linked to this letter.

        Retries start at 0. An ``expires`` that has passed is removed: one who replays a
        letter wants it to run.
        """
        fields: dict[str, Any] = {"retries": 0, "eta": None}
        told = self.envelope.fields()
        if _passed(told.get("expires")):
            fields["expires"] = None
        if self.envelope.protocol == 1 and told.get("retries", 0) == 0 and not told.get("eta"):
            fields = {name: v for name, v in fields.items() if name == "expires"}
        envelope = self.envelope.with_fields(**fields) if fields else self.envelope
        return envelope.with_header(self.history.replayed(self.id).dumps())


_TEXTS = tuple(
    f.name for f in fields(DeadLetter) if f.type == "str" and f.name not in ("id", "digest")
)  # kind, verdict_rule, category, hint, rule, worker, app_version


def written_anew(envelope: Envelope) -> Envelope:
    """*envelope*, from a dead-letter queue, as it is put there once more: the same letter.

    What a broker has noted on it does not go along; our header says what it was known by.
    """
    letter = DeadLetter.from_envelope(envelope)
    data = _object(envelope.headers.get(HEADER))
    told = Identity.read(data, envelope) or Identity.of(letter.id, letter.digest, envelope)
    return envelope.with_header(compact({**data, Identity.KEY: told}))


def _without_itself(history: History, name: str) -> History:
    """*history* of the letter *name*, whose lineage comes from the network like all of it."""
    if name not in history.lineage:
        return history
    return replace(history, lineage=tuple(n for n in history.lineage if n != name))


def _short_hash(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16]


def _weighs(text: str) -> int:
    return len(text.encode())


def _unpacked(body: bytes) -> Envelope | None:
    try:
        return Envelope.from_json(loads(body))
    except Exception:  # not ours: it is shown as what it is
        return None


def _object(text: object) -> Mapping[str, Any]:
    try:
        data = json.loads(text) if isinstance(text, (str, bytes)) else None
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, Mapping) else {}


def _reason(value: object) -> Reason:
    try:
        return Reason(value)
    except ValueError:
        return Reason.INVALID


def _passed(expires: object) -> bool:
    left = seconds_until(expires)
    return left is not None and left <= 0
