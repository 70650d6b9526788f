"""What a body has changed of its own message before it is retried.

Celery sends a retry by what ``self.request`` holds by then, so a body may reset its retries,
take what is done off a list that it was given, or turn to the next page. Here the message that was
received is sent again; so what it holds is decoded once more, when an attempt is to be retried,
and compared. Nothing is copied before.
"""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery.app import trace as _celerys
from celery.utils.saferepr import saferepr
from kombu import serialization as _serialization

from celery_resilience.messages.envelope import Envelope, encoded

__all__ = ["Changed", "what_changed"]

logger = logging.getLogger("celery_resilience")

# The stubs do not know all of it.
serialization: Any = _serialization

#: What a message carries beside its arguments, and where Celery's request has it.
_EMBEDDED = {"callbacks": "callbacks", "errbacks": "errbacks", "chain": "chain", "chord": "chord"}
#: The same in a message of protocol 1, beside the arguments; it has no chain.
_FIELDS = ("callbacks", "errbacks", "chord")
#: How many callers up the one may be that has decoded the message.
_CALLERS = 7
#: As much of the arguments as Celery shows.
_SHOWN = 1024


@dataclass(frozen=True)
class Changed:
    """What differs from the message received."""

    #: The task's fields: ``retries``, ``argsrepr``, ``kwargsrepr``.
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: Arguments and what is embedded with them, in the message's own serialization.
    body: bytes | None = None
    #: What a message of protocol 1 holds by now, pickled: its arguments came decoded, so it is
    #: compared with what was received where that still is, in the main process.
    now: bytes | None = None

    def apply(self, envelope: Envelope) -> Envelope:
        """*envelope* with these changes."""
        if self.body is not None:
            envelope = envelope.with_body(self.body)
        if self.now is not None and envelope.protocol == 1:
            envelope = _with_what_differs(envelope, pickle.loads(self.now))
        return envelope.with_fields(**self.fields) if self.fields else envelope


def what_changed(req: Any, request: Mapping[str, Any]) -> Changed | None:
    """How *req*, the body's own request, differs from what was received as *request*; None: in
    nothing, or in what can't be sent."""
    fields: dict[str, Any] = {}
    if (req.retries or 0) != (request.get("retries") or 0):
        fields["retries"] = req.retries or 0
    received, body, now = _received(), None, None
    try:
        if received is not None and received[1]:
            body = _new_body(req, request, *received, fields)
        elif received is not None:
            now = pickle.dumps(_as_fields(req))
    except Exception as exc:
        _warn_of_unsendable(req.task, req.id, exc)
    if not fields and body is None and now is None:
        return None
    return Changed(fields, body, now)


def _warn_of_unsendable(task: object, id_: object, exc: Exception) -> None:
    logger.warning(
        "%s[%s]: its body has changed its arguments, but that can't be sent (%s: %s): they "
        "are sent as they were received",
        task, id_, type(exc).__name__, exc,
    )  # fmt: skip


def _received() -> tuple[Any, str, str] | None:
    """The message's body, its type and its encoding, as Celery's function that decodes it has
    them: of no type, it came decoded (protocol 1). None: it is not Celery that runs the body."""
    frame = sys._getframe(1)
    for _ in range(_CALLERS):
        local = frame.f_locals if frame.f_code.co_filename == _celerys.__file__ else {}
        if "content_type" in local and "body" in local:
            return local["body"], local["content_type"], local["content_encoding"]
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


def _as_fields(req: Any) -> dict[str, Any]:
    """What may change in a message of protocol 1."""
    embedded = {name: getattr(req, name) for name in _FIELDS}
    return {"args": list(req.args or ()), "kwargs": dict(req.kwargs or {}), **embedded}


def _with_what_differs(envelope: Envelope, now: dict[str, Any]) -> Envelope:
    received = dict(envelope.fields())
    received["args"] = list(received.get("args") or ())
    changed = {
        name: value
        for name, value in now.items()
        # A message need not hold what is empty.
        if not _same(value or None, received.get(name) or None)
    }
    if not changed:
        return envelope
    try:
        return envelope.with_fields(**changed)
    except Exception as exc:
        _warn_of_unsendable(received.get("task"), received.get("id"), exc)
        return envelope


def _same(now: Any, received: Any) -> bool:
    try:
        return bool(now == received)
    except Exception:  # an array, for one, has no such answer
        return False
