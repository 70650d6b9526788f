"""A message whose workers were lost as often as is allowed: is it poison, or were they not dead?

On Redis only starts in workers that have died are counted. RabbitMQ counts whatever comes again,
and a connection that is lost is no death: there the other workers are asked first
(:mod:`~celery_resilience.worker.peers`). On both the result store is asked last: a body may have
succeeded whose worker died before it could acknowledge that.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.ownership import is_alive
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.policy.decision import Reason
from celery_resilience.worker.peers import Answer, Found, ask_peers
from celery_resilience.worker.result_store import ask_for_success
from celery_resilience.worker.settle import Settler
from celery_resilience.worker.start_plan import Requeue

__all__ = ["End", "ask_before_end", "plan_end", "requeue"]

logger = logging.getLogger("celery_resilience")

#: How long a message is held whose body runs elsewhere, in seconds; then it is asked for again.
_HELD = 10.0


class End(Enum):
    """What becomes of a message that does not start again."""

    ACK = auto()
    DEAD_LETTER = auto()
    #: Acknowledged if the result store has its success, else dead-lettered.
    ASK_RESULT_STORE = auto()


def plan_end(answer: Answer, history: History, limit: int) -> Requeue | End:
    """What becomes of a message at its *limit* of which other workers say *answer*."""
    if answer is Answer.RUNS:
        return Requeue(replace(history, crash_redeliveries=1, elsewhere=True), _HELD)
    if answer is Answer.DONE:
        return End.ACK
    if answer is Answer.HAD or history.elsewhere:
        # As after one crash: it starts with care.
        once = min(1, limit - 1)
        return Requeue(replace(history, crash_redeliveries=once, elsewhere=False), 0)
    # One that was replayed keeps its id, and may have succeeded in another life.
    if history.redelivered_at is None or history.lineage:
        return End.DEAD_LETTER
    return End.ASK_RESULT_STORE


def ask_before_end(request: Any, settler: Settler, delivery: Delivery, history: History) -> None:
    """Decide what becomes of *request*, which is not started, when it is known who else has it.

    Until then its message is held, and RabbitMQ delivers it again should this worker end.
    """
    request.detach()
    subject, limit = f"{request.name}[{request.id}]", settler.settings.max_worker_losses

    def hear_peers(found: Found) -> None:
        if not is_alive(request._message):
            return  # it is redelivered
        end = plan_end(found.answer, history, limit)
        where = f"{found.worker}, which has lost its connection"
        if isinstance(end, Requeue):
            if found.answer is Answer.RUNS:
                logger.info(
                    "%s: redelivered, and runs in %s: not started, asking again in %g s",
                    subject, where, end.delay,
                )  # fmt: skip
            requeue(request, settler, delivery, end.history, end.delay)
        elif end is End.ASK_RESULT_STORE:
            # A success that is older is another message's with the same id.
            since = SimpleNamespace(
                name=request.name, id=request.id, ignore_result=request.ignore_result,
                _task=request._task, received_at=history.redelivered_at,
            )  # fmt: skip
            ask_for_success(since, settler.pending.aside, hear_result_store)
        elif end is End.ACK:
            acknowledge(OutcomeKind.NOT_OURS, f"done in {where}")
        else:
            dead_letter()

    def hear_result_store(stored: bool | None) -> None:
        if not is_alive(request._message):
            return
        if stored:
            acknowledge(OutcomeKind.SUCCEEDED, "done: its success is stored")
        else:
            dead_letter()

    def acknowledge(kind: OutcomeKind, how: str) -> None:
        logger.info("%s: redelivered, and is %s: it is not run again", subject, how)
        settler.end_as(kind, delivery, why=how)

    def dead_letter() -> None:
        rule = f"max_worker_losses={limit}: its worker died whenever it was started"
        settler.bury(delivery, Reason.WORKER_LOST, rule)

    ask_peers(request, settler, history.redelivered_at, hear_peers)


def requeue(
    request: Any, settler: Settler, delivery: Delivery, history: History, delay: float
) -> None:
    """Publish *request*, which was not started, again with *history*, in *delay* seconds."""
    request.detach()
    copy = delivery.envelope
    if history.crash_redeliveries or HEADER in copy.headers:
        copy = copy.with_header(history.dumps())
    settler.schedule(delivery, copy, delay)
