"""What follows a body that has succeeded: its callbacks and the rest of its chain.

If they can't be published, the work is done all the same. Its dead letter (reason ``chain``)
keeps what the body has returned, so that a replay publishes the rest and runs no body again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from celery_resilience.messages.headers import header_in
from celery_resilience.messages.history import History, Succeeded

__all__ = ["AfterBody", "after_body", "publish_rest", "succeeded_before", "warn_of_unstored"]

logger = logging.getLogger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
trace: Any = _trace
signature: Any = _signature
celerys_state: Any = _celerys_state

#: The longest result that travels in a letter's header, in characters of JSON.
_LONGEST_RESULT = 16_000


@dataclass(frozen=True)
class AfterBody:
    """How far Celery's tracer had come, once the body had succeeded."""

    #: What the body has returned.
    retval: Any
    #: What follows was published, as far as there was anything.
    is_published: bool
    #: Its callbacks were: the rest of its chain is what could not be published.
    is_called: bool

    def unpublished(self, req: Any) -> Succeeded | None:
        """What of *req* is left to be done; None: it was published, or nothing follows."""
        # Celery 5.6 and older take the next one off the chain before they publish it.
        if self.is_published or not (self.is_called or req.chain or req.callbacks):
            return None
        try:
            text = str(dumps(self.retval))
        except Exception:  # no JSON can say it
            return Succeeded(None, self.is_called)
        return Succeeded(text if len(text) <= _LONGEST_RESULT else None, self.is_called)


def after_body(exc: BaseException) -> AfterBody | None:
    """How far the tracer had come when *exc* was raised; None: the body had not yet succeeded.

    Its local variables are all that says so. A mark of our own, set when ``run`` returns, would
    not do: what wraps ``run`` or ``__call__`` may have work left, such as a commit, and its
    failure is a failure of the task.
    """
    tb = exc.__traceback__
    if tb is None or tb.tb_frame.f_code.co_filename != trace.__file__:
        return None
    its = tb.tb_frame.f_locals
    if its.get("state") != states.SUCCESS:
        return None
    called = tb.tb_next.tb_frame if tb.tb_next is not None else None
    is_stored = called is not None and called.f_code.co_name == "mark_as_done"
    return AfterBody(
        its.get("retval"),
        is_published=bool(its.get("callbacks_sent") or is_stored),
        is_called="_chsig" in its or (called is not None and "_chsig" in called.f_locals),
    )


def warn_of_unstored(task: Any, req: Any, exc: BaseException, retval: Any) -> None:
    """Warn that *retval*, which the body has returned, is lost because of *exc*."""
    done = f"{task.name}[{req.id}]: its body has succeeded and is not run again, but its result"
    if not isinstance(exc, EncodeError):
        logger.warning("%s could not be stored (%s: %s)", done, type(exc).__name__, said(exc))
        return
    logger.warning(
        "%s, of type %s, can't be written as %s: its state is FAILURE (%s). Let it return what "
        "can be, or set ignore_result=True",
        done, type(retval).__name__, task.app.conf.result_serializer, type(exc).__name__,
    )  # fmt: skip


def succeeded_before(request: Mapping[str, Any] | None) -> Succeeded | None:
    """What an earlier delivery of this message succeeded with; None: its body is to be run."""
    text = header_in(request) if request else None
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
