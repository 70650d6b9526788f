"""What follows a body that has succeeded: its callbacks and the rest of its chain.

If they can't be published, the work is done all the same. Its dead letter (reason ``chain``)
keeps what the body has returned, so that a replay publishes the rest and runs no body again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from celery import _state as _celerys_state
from celery import signals, states
from celery import signature as _signature
from celery.app import trace as _trace
from celery.app.task import Context
from celery.utils.saferepr import saferepr
from kombu.exceptions import EncodeError
from kombu.utils.json import dumps, loads

from celery_resilience.messages.error_record import said
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History, Succeeded

__all__ = ["body_returned", "publish_rest", "succeeded_before", "unpublished", "warn_of_unstored"]

logger = logging.getLogger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
trace: Any = _trace
signature: Any = _signature
celerys_state: Any = _celerys_state

#: The longest result that travels in a letter's header, in characters of JSON.
_LONGEST_RESULT = 16_000


def body_returned(exc: BaseException) -> bool:
    """Whether the body had already succeeded: what is done must never be done again.

    Celery does not say; but its tracer, where the exception was caught, keeps the state that
    it had reached in a local variable.
    """
    return _tracers_locals(exc).get("state") == states.SUCCESS


def unpublished(exc: BaseException, req: Any) -> Succeeded | None:
    """What is left to be done because of *exc*, raised after the body had returned; None: what
    follows has been published, or nothing does."""
    tb, local = exc.__traceback__, _tracers_locals(exc)
    inner = tb.tb_next if tb is not None else None
    if local.get("callbacks_sent") or (inner and inner.tb_frame.f_code.co_name == "mark_as_done"):
        return None
    # Celery 5.6 and older take the next one off the chain before they publish it.
    chained = "_chsig" in local or (inner is not None and "_chsig" in inner.tb_frame.f_locals)
    if not (chained or req.chain or req.callbacks):
        return None
    try:
        text = str(dumps(local.get("retval")))
    except Exception:  # no JSON can say it
        return Succeeded(None, chained)
    return Succeeded(text if len(text) <= _LONGEST_RESULT else None, chained)


def warn_of_unstored(task: Any, req: Any, exc: BaseException) -> None:
    """Tell that what the body has returned is lost, because of *exc*, though its work is done."""
    done = f"{task.name}[{req.id}]: its body has succeeded and is not run again, but its result"
    if not isinstance(exc, EncodeError):
        logger.warning("%s could not be stored (%s: %s)", done, type(exc).__name__, said(exc))
        return
    logger.warning(
        "%s, of type %s, can't be written as %s: its state is FAILURE (%s). Let it return what "
        "can be, or set ignore_result=True",
        done, type(_tracers_locals(exc).get("retval")).__name__, task.app.conf.result_serializer,
        type(exc).__name__,
    )  # fmt: skip


def succeeded_before(request: Mapping[str, Any] | None) -> Succeeded | None:
    """What an earlier life of this message has come to; None: its body is to be run."""
    text = request.get(HEADER) if request else None
    if request and text is None and (nested := request.get("headers")):
        text = nested.get(HEADER)
    if not isinstance(text, str) or '"succeeded"' not in text:
        return None
    before = History.loads(text).succeeded
    return before if before is not None and before.result is not None else None


def publish_rest(
    task: Any, uuid: str, args: Any, kwargs: Any, request: Any, before: Succeeded
) -> Any:
    """Publish what follows and store the result that was kept, as Celery's tracer does after the
    body; raises what the publishing raises."""
    began = time.monotonic()
    result = loads(before.result or "null")
    context: Any = Context(dict(request or {}), args=args, kwargs=kwargs, called_directly=False)
    after: dict[str, Any] = {"parent_id": uuid, "root_id": context.root_id or uuid}
    if task.app.conf.task_inherit_parent_priority:
        after["priority"] = (context.delivery_info or {}).get("priority")
    celerys_state._task_stack.push(task)
    task.request_stack.push(context)
    try:
        for each in () if before.called else context.callbacks or ():
            signature(each, app=task.app).apply_async((result,), **after)
        if context.chain:
            *rest, following = context.chain
            signature(following, app=task.app).apply_async((result,), chain=rest, **after)
        ignored = task.ignore_result or context.ignore_result
        task.backend.mark_as_done(uuid, result, context, not ignored)
        signals.task_success.send(sender=task, result=result)
    finally:
        task.request_stack.pop()
        celerys_state._task_stack.pop()
    return trace.trace_ok_t(result, None, time.monotonic() - began, saferepr(result))


def _tracers_locals(exc: BaseException) -> Mapping[str, Any]:
    tb = exc.__traceback__
    if tb is None or tb.tb_frame.f_code.co_filename != trace.__file__:
        return {}
    return tb.tb_frame.f_locals
