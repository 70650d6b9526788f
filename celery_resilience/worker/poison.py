"""A message whose workers were lost as often as is allowed: is it poison, or were they not dead?

On Redis only starts in workers that have died are counted. RabbitMQ counts whatever comes again,
and a connection that is lost is no death: there the other workers are asked first
(:mod:`~celery_resilience.worker.peers`). On both the result store is asked last: a body may have
succeeded whose worker died before it could acknowledge that.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from celery_resilience.brokers.base import Delivery
from celery_resilience.brokers.rabbitmq.pyamqp import is_alive
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.messages.outcome import OutcomeKind
from celery_resilience.policy.decision import Reason
from celery_resilience.worker.peers import Answer, Found, ask_peers
from celery_resilience.worker.result_store import ask_for_success
from celery_resilience.worker.settle import Settler

__all__ = ["ask_before_end", "put_back"]

logger = logging.getLogger("celery_resilience")

#: How long a message is held whose body runs elsewhere, in seconds; then it is asked for again.
_HELD = 10.0


def ask_before_end(request: Any, settler: Settler, delivery: Delivery, history: History) -> None:
    """Decide what becomes of *request*, which is not started, when it is known who else has it.

    Until then its message is held, and RabbitMQ delivers it again should this worker end.
    """
    request.detach()
    limit = settler.settings.max_worker_losses
    #: As after one death: it is started with care.
    once = replace(history, starts=min(1, limit - 1), elsewhere=False)

    def follow(found: Found) -> None:
        if not is_alive(request._message):
            return  # it is delivered again
        if found.answer is Answer.RUNS:
            logger.info(
                "%s[%s] is delivered again, and runs in %s, which has lost its connection: it is "
                "not started, and asked for again in %g s",
                request.name, request.id, found.worker, _HELD,
            )  # fmt: skip
            held = replace(history, starts=max(1, once.starts), elsewhere=True)
            put_back(request, settler, delivery, held, _HELD)
        elif found.answer is Answer.DONE:
            done(f"done in {found.worker}, which has lost its connection")
        elif found.answer is Answer.HAD or history.elsewhere:
            put_back(request, settler, delivery, once, 0)
        elif history.suspected is None or history.lineage:
            _give_up(request, settler, delivery, limit)
        else:
            # A success that is older is another message's with the same id.
            since = SimpleNamespace(
                name=request.name, id=request.id, ignore_result=request.ignore_result,
                _task=request._task, received_at=history.suspected,
            )  # fmt: skip
            ask_for_success(since, settler.pending.aside, hear)

    def hear(stored: bool | None) -> None:
        if not is_alive(request._message):
            return
        if stored:
            done("done: its success is stored", OutcomeKind.SUCCEEDED)
        else:
            _give_up(request, settler, delivery, limit)

    def done(how: str, kind: OutcomeKind = OutcomeKind.NOT_OURS) -> None:
        logger.info(
            "%s[%s] is delivered again, and is %s: it is not run again",
            request.name, request.id, how,
        )  # fmt: skip
        settler.end_as(kind, delivery, why=how)

    ask_peers(request, settler, follow)


def _give_up(request: Any, settler: Settler, delivery: Delivery, limit: int) -> None:
    """Make a dead letter of *request*."""
    request.detach()
    rule = f"max_worker_losses={limit}: its worker died whenever it was started"
    settler.bury(delivery, Reason.WORKER_LOST, rule)


def put_back(
    request: Any, settler: Settler, delivery: Delivery, history: History, delay: float
) -> None:
    """Publish *request*, which is not started, anew, with *history*, for *delay* seconds."""
    request.detach()
    copy = delivery.envelope
    if history.starts or HEADER in copy.headers:
        copy = copy.with_header(history.dumps())
    settler.schedule(delivery, copy, delay)
