"""Where the message is: what the parent does with the decision that comes back.

A :class:`ResilientRequest` settles each message once. If no decision came back (the child died, or
ran into its hard time limit), the same policy is asked in :mod:`~celery_resilience.worker.decide`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from billiard import einfo as _einfo
from billiard.exceptions import TimeLimitExceeded
from celery import exceptions as _exceptions
from celery.worker import request as _request
from celery.worker import state

from celery_resilience.brokers.base import Delivery
from celery_resilience.classify.foreign import let_through, log_raised
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.policy.decision import Reason, RetryLater
from celery_resilience.task.attempt import AttemptResult
from celery_resilience.task.einfo import carried
from celery_resilience.worker import result_store
from celery_resilience.worker.announce import (
    announce_failure,
    announce_rejection,
    announce_retry,
    exception_of,
    send_retried,
)
from celery_resilience.worker.decide import (
    Report,
    came_before,
    decide_aside,
    decide_requeue,
    is_lost,
    text,
)
from celery_resilience.worker.outcome import telling
from celery_resilience.worker.peers import note_acknowledged
from celery_resilience.worker.redelivery import watch_start
from celery_resilience.worker.rejection import goes_to_an_exchange
from celery_resilience.worker.revocation import recall_revocation
from celery_resilience.worker.revoked_retries import is_revoked
from celery_resilience.worker.settle import Settler, settler_of
from celery_resilience.worker.shutdown import remember_killed
from celery_resilience.worker.source_queue import delivery_of
from celery_resilience.worker.unprocessable import validate_message

__all__ = ["ResilientRequest"]

logger = logging.getLogger("celery_resilience")

# The stubs describe what tasks use of these, not what makes them.
Request: Any = _request.Request
einfo: Any = _einfo
send_revoked: Any = vars(_request)["send_revoked"]


class ResilientRequest(Request):  # type: ignore[misc]
    """Celery's Request, which moves the message before it acks it."""

    #: The message is being settled: nothing else may acknowledge or reject it; and it was given
    #: back, or to the owner's exchange: to acknowledge it would lose it.
    _settled = _rejected = False
    #: Its message has come before (:mod:`~celery_resilience.worker.redelivery`).
    _redelivered = False
    #: Who settles its message, and who is told how that has ended.
    _resilience_settler: Any = None
    _listeners: Sequence[Any] = ()
    acknowledged: bool

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "on_success" in vars(cls):
            cls.on_success = telling(vars(cls)["on_success"])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.received_at = time.time()
        validate_message(self._request_dict, self._payload)
        headers, info = self._message.headers, self._message.delivery_info
        if (headers and HEADER in headers) or (info and info.get("redelivered")):
            self._look_back()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """The attempt did not succeed: settle what the child decided, or decide here."""
        settler, exc, result = settler_of(self), exception_of(exc_info), carried(exc_info)
        report = Report.of(
            exc, decided=result is not None, settles=settler is not None, settled=self._settled,
            terminating=bool(state.should_terminate),
        )  # fmt: skip
        celerys = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        if settler is None:
            return None if self._settled else celerys()
        match report:
            case Report.CELERYS_OWN:
                delivery = self.delivery(settler) if self._listeners else None
                answer = celerys()
                if delivery is not None:
                    settler.outcomes.of_celerys_own(self, delivery, exc)
                return answer
            case Report.REQUEUED:
                self._requeue(exc, settler)
            case Report.REJECTED:
                state.task_ready(self)
                announce_rejection(self, settler.pending.aside, exc, exc_info, send_failed_event)
            case Report.UNDECIDED:
                self._settled = True
                fail = partial(self._fail, exc, exc_info, send_failed_event, settler, here=True)
                decide_aside(self, exc, exc_info, settler, fail)
            case Report.DECIDED:
                assert result is not None
                self._settled = True
                self._fail(exc, exc_info, send_failed_event, settler, result)
        return None

    def _fail(
        self, exc: BaseException, exc_info: Any, send_event: bool, settler: Settler,
        result: AttemptResult, here: bool = False,
    ) -> None:  # fmt: skip
        """Tell Celery's world of *result*, and carry it out."""
        if isinstance(result.decision, RetryLater) and is_revoked(self):
            # Here: another worker may not know of it, nor may this one later.
            logger.info("%s[%s]: dropped: it was revoked while it ran", self.name, self.id)
            self._announce_revoked("revoked", False, None, False)
            return
        state.task_ready(self)
        try:
            if isinstance(result.decision, RetryLater) or isinstance(exc, _exceptions.Retry):
                announce_retry(self, exc, exc_info, result, here)
            else:
                announce_failure(self, exc, exc_info, here, send_event)
                if result.untold:
                    result_store.store_failure(self, settler.pending.aside, exc)
        except BaseException as problem:
            let_through(problem)
            what = "%s[%s]: its failure could not be announced"
            log_raised(logger, problem, what, self.name, self.id)
        finally:
            settler.settle(self.delivery(settler), result, lost=here and is_lost(exc))

    def on_retry(self, exc_info: Any) -> None:
        """Celery's, which would format the traceback whether it is read or not."""
        self.acknowledge()  # if it is a retry that the body has published itself
        send_retried(self, exc_info)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A hard limit that came without :meth:`on_failure`, as gevent's does, is settled here."""
        if soft or settler_of(self) is None or state.should_terminate:
            super().on_timeout(soft, timeout)
        elif not self._settled:
            try:
                raise TimeLimitExceeded(timeout)
            except TimeLimitExceeded:
                self.on_failure(einfo.ExceptionInfo())

    def acknowledge(self) -> None:
        """Ack the message, unless a settlement does that when the copy is written. What a cold
        shutdown has killed goes back to the broker: gevent calls that a success."""
        if not self._settled and not self._already_cancelled:
            super().acknowledge()
            note_acknowledged(self._message)

    def cancel(self, *args: Any, **options: Any) -> None:
        """Celery's, in a cold shutdown; a body that the pool can't kill goes on to its end.

        Celery's would raise out of the signal handler, into whatever the loop does just then: the
        shutdown ends there, and with it a settlement that is half done, or the body of a solo pool.
        """
        with suppress(NotImplementedError):
            super().cancel(*args, **options)
        settler = settler_of(self)
        if settler is not None and self._already_cancelled and self._task.acks_late:
            remember_killed(self, settler)

    def reject(self, requeue: bool = False) -> None:
        """A rejected message is a dead letter: Redis would lose it, RabbitMQ may have no DLX."""
        settler = settler_of(self)
        if self._settled:
            return
        if requeue or settler is None or goes_to_an_exchange(self, settler.settings):
            self._rejected = True
            super().reject(requeue=requeue)
            if self._listeners and settler is not None:
                settler.outcomes.rejected(self.delivery(settler), requeue)
            return
        self._settled = True
        if self.time_start:
            settler.bury(self.delivery(settler), Reason.REJECTED, "the task rejected it")
        else:
            settler.bury(self.delivery(settler), Reason.INVALID, "Celery refused it")
        self.send_event("task-rejected", requeue=False)

    def maybe_expire(self) -> bool | None:
        """Tell a task that has expired from one that was revoked: that one is dropped."""
        if not self._keeps_expired():
            return super().maybe_expire()  # type: ignore[no-any-return]
        if self.id in state.revoked or not super().maybe_expire():
            return False
        # Celery has noted it as revoked: its replay would be dropped.
        state.revoked.discard(self.id)
        return True

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's, which would wait in the loop until the state is stored."""
        settler = settler_of(self)
        if settler is None:
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        self._already_revoked = True
        keeps = expired and self._keeps_expired()
        delivery = self.delivery(settler)
        self._settled = keeps
        state.task_ready(self)
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=expired)

        def drop(stored: Any) -> None:
            if keeps:
                rule = f"it expired at {text(self._expires)}, before a worker came to it"
                settler.bury(delivery, Reason.EXPIRED, rule)
            else:
                self.acknowledge()
                settler.outcomes.tell(OutcomeKind.DROPPED, delivery, why=reason)
            send_revoked(
                self._task, request=self._context, terminated=terminated, signum=signum,
                expired=expired,
            )  # fmt: skip

        result_store.store_revocation(self, settler.pending.aside, reason, drop)

    def _keeps_expired(self) -> bool:
        settler = settler_of(self)
        return settler is not None and settler.settings.dead_letter_expired

    def _requeue(self, exc: BaseException, settler: Settler) -> None:
        result = decide_requeue(self, exc)
        delivery = self.delivery(settler)
        self.detach()
        settler.settle(delivery, result)
        self.send_event("task-rejected", requeue=isinstance(result.decision, RetryLater))

    def _look_back(self) -> None:
        """It is not the first time that this message is delivered."""
        if came_before(self):
            self._delivery_info["redelivered"] = True
        watch_start(self)
        settler = settler_of(self)
        if settler is not None:
            recall_revocation(self, settler)

    # Letting go

    def detach(self) -> None:
        """Leave this request, whose message is settled elsewhere, out of all that follows.
        The worker's slot that it has taken is freed by the caller."""
        self._settled = True
        state.task_ready(self)

    def delivery(self, settler: Settler) -> Delivery:
        """Its message, to be settled."""
        message = self._message

        def ack() -> None:
            if settler.pending.loop.looping:
                Request.acknowledge(self)
            elif not self.acknowledged:
                message.ack_log_error(logger, self._connection_errors)
                self.acknowledged = True

        return delivery_of(
            self._app, message, ack, f"{self.name}[{self.id}]", self._hostname,
            task_queue=getattr(self._task, "dead_letter_queue", None),
            acked_early=self.acknowledged,
        )  # fmt: skip
