"""What a body has changed of its own message before it is retried.

Celery sends a retry by what ``self.request`` holds by then, so a body may count its retries anew,
take what is done off a list that it was given, or turn to the next page. Here the message that was
received is sent again; so what it holds is decoded once more, when an attempt is to be retried,
and compared. Nothing is copied before.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery.app import trace as _celerys
from celery.utils.saferepr import saferepr
from kombu import serialization as _serialization

from celery_resilience.envelope import Envelope, encoded

__all__ = ["Changed", "what_changed"]

logger = logging.getLogger("celery_resilience")

# The stubs do not know all of it.
serialization: Any = _serialization

#: What a message carries beside its arguments, and where Celery's request has it.
_EMBEDDED = {"callbacks": "callbacks", "errbacks": "errbacks", "chain": "chain", "chord": "chord"}
#: How many callers up the one may be that has decoded the message.
_CALLERS = 6
#: As much of the arguments as Celery shows.
_SHOWN = 1024


@dataclass(frozen=True)
class Changed:
    """What differs from the message received."""

    #: The task's fields: ``retries``, ``argsrepr``, ``kwargsrepr``.
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: Arguments and what is embedded with them, in the message's own serialization.
    body: bytes | None = None

    def apply(self, envelope: Envelope) -> Envelope:
        """*envelope* with these changes."""
        if self.body is not None:
            envelope = envelope.with_body(self.body)
        return envelope.with_fields(**self.fields) if self.fields else envelope


def what_changed(req: Any, request: Mapping[str, Any]) -> Changed | None:
    """How *req*, the body's own request, differs from what was received as *request*; None: in
    nothing, or in what can't be sent."""
    fields: dict[str, Any] = {}
    if (req.retries or 0) != (request.get("retries") or 0):
        fields["retries"] = req.retries or 0
    received = _received()
    try:
        body = None if received is None else _new_body(req, request, *received, fields)
    except Exception as exc:
        logger.warning(
            "%s[%s]: its body has changed its arguments, but that can't be sent (%s: %s): they "
            "are sent as they were received",
            req.task, req.id, type(exc).__name__, exc,
        )  # fmt: skip
        body = None
    return Changed(fields, body) if fields or body is not None else None


def _received() -> tuple[Any, str, str] | None:
    """The message's body, its type and its encoding, as Celery's function that has decoded it has
    them; None: it came decoded (protocol 1), or not by Celery."""
    frame = sys._getframe(1)
    for _ in range(_CALLERS):
        local = frame.f_locals if frame.f_code.co_filename == _celerys.__file__ else {}
        if "content_type" in local and "body" in local:
            body, kind = local["body"], local["content_type"]
            return (body, kind, local["content_encoding"]) if kind else None
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _new_body(
    req: Any, request: Mapping[str, Any], body: Any, kind: str, encoding: str,
    fields: dict[str, Any],
) -> bytes | None:  # fmt: skip
    loaded = serialization.loads(body, kind, encoding, accept={kind})
    args, kwargs, embedded = loaded
    embedded = embedded or {}
    now = (
        list(req.args or ()),
        dict(req.kwargs or {}),
        {**embedded, **{name: getattr(req, attribute) for name, attribute in _EMBEDDED.items()
                        if name in embedded}},
    )  # fmt: skip
    if _same(now, (list(args), kwargs, embedded)):
        return None
    serializer = serialization.registry.type_to_name[kind]
    payload = encoded(serialization.dumps(now, serializer=serializer)[2])
    if payload == encoded(serialization.dumps((args, kwargs, embedded), serializer=serializer)[2]):
        return None  # of a type that is not equal to itself
    shown = {"argsrepr": (tuple(args), tuple(now[0])), "kwargsrepr": (kwargs, now[1])}
    for name, (was, value) in shown.items():
        # What the sender has masked stays masked.
        if request.get(name) == saferepr(was, _SHOWN):
            fields[name] = saferepr(value, _SHOWN)
    return payload


def _same(now: Any, received: Any) -> bool:
    try:
        return bool(now == received)
    except Exception:  # an array, for one, has no such answer
        return False
