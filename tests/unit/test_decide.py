"""What an attempt comes to, as a table: its state and what it has ended in, and the decision."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry

from celery_resilience import Policy, ResilientTask, TransientError, install
from celery_resilience.messages.history import Succeeded
from celery_resilience.policy.decision import Decision, Drop, GiveUp, Reason, RetryLater
from celery_resilience.task.attempt import CurrentAttempt
from celery_resilience.task.decide import GONE_ON, decide
from celery_resilience.task.einfo import carried
from celery_resilience.task.reraise import Discarded
from celery_resilience.task.trace_info import state_of


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", backend="disabled://", set_as_current=False)
    install(app)
    return app


def raised_in_tracer(exc: Exception, **its: Any) -> Exception:
    """*exc* as Celery's tracer catches it, with *its* local variables."""
    try:
        exec(compile("raise exc", trace.__file__, "exec"), {}, {"exc": exc, **its})
    except Exception as caught:
        caught.__traceback__ = caught.__traceback__ and caught.__traceback__.tb_next
    return exc


ERROR, LATER = TransientError("away"), RetryLater(5, rule="self.retry")
SENT = Retry(exc=ERROR, when=1, sig=SimpleNamespace())  # type: ignore[call-arg]
STORED = raised_in_tracer(OSError("down"), state="SUCCESS", retval=3, callbacks_sent=True)
UNSENT = raised_in_tracer(OSError("down"), state="SUCCESS", retval=3, callbacks_sent=False)
FAILED = raised_in_tracer(TransientError("away"), state="FAILURE", retval=3)
OURS = "classifier: protocol.TransientError"
REST = Succeeded("3")
CHAIN = GiveUp(Reason.CHAIN, "what was to follow could not be published")
UNSTORED = Drop("its body succeeded", "its result could not be stored", "results_not_stored")


@pytest.mark.parametrize(
    ("state", "request_has", "exc", "decision"),
    [
        # Control flow is Celery's own affair
        ({}, {}, Ignore(), None),
        ({}, {}, Reject(), None),
        ({"requested": LATER}, {}, Ignore(), None),
        ({}, {}, SENT, None),
        ({"published": True}, {}, Retry(), None),
        # A retry that the task requests
        ({"requested": LATER}, {}, Retry(exc=ERROR), LATER),
        ({"requested": LATER}, {}, ValueError("caught the Retry"), LATER),
        ({}, {}, Retry(exc=ERROR, when=7), RetryLater(7, rule="a Retry that it raised")),
        (
            {}, {"retries": 3}, Retry(exc=ERROR, when=7),
            GiveUp(Reason.EXHAUSTED, "a Retry that it raised, past its limit"),
        ),
        ({"exhausted": ERROR}, {}, ERROR, GiveUp(Reason.EXHAUSTED, "self.retry, past its limit")),
        ({"published": True}, {}, ERROR, GONE_ON),
        # A body that has succeeded is not run again
        ({"rest": REST}, {}, ERROR, CHAIN),
        ({}, {"chain": ["next"]}, UNSENT, CHAIN),
        ({}, {"callbacks": ["next"]}, UNSENT, CHAIN),
        ({}, {}, UNSENT, UNSTORED),
        ({}, {"chain": ["next"]}, STORED, UNSTORED),
        # The policy decides about the others
        ({}, {}, ERROR, RetryLater(2, rule=OURS)),
        ({}, {"chain": ["next"]}, FAILED, RetryLater(2, rule=OURS)),
        ({}, {"retries": 3}, ERROR, GiveUp(Reason.EXHAUSTED, OURS)),
        # Eagerly Celery sees to a Retry, and a drop is a failure
        ({"eager": True}, {}, Retry(exc=ERROR), None),
        ({"eager": True, "published": True}, {}, ERROR, None),
        ({"eager": True}, {}, ERROR, RetryLater(2, rule=OURS)),
    ],
)  # fmt: skip
def test_attempt_is_decided_by_its_state_and_what_it_ended_in(
    app: Celery, state: Any, request_has: Any, exc: Exception, decision: Decision | None
) -> None:
    @app.task(failure_policy=Policy(backoff=2, factor=1, jitter="none"))
    def sync() -> None: ...

    attempt = CurrentAttempt(time.time(), app.tasks[sync.name])
    vars(attempt).update(state)
    req = SimpleNamespace(
        **{"id": "1", "retries": 0, "expires": None, "headers": {}, "chain": [], "callbacks": []}
        | request_has
    )
    before = dict(vars(attempt))
    result = decide(attempt, req, exc)
    assert (result and result.decision) == decision
    assert vars(attempt) == before, "nothing is changed by deciding"


@pytest.mark.parametrize(
    ("raised", "state"),
    [
        (Retry(exc=ERROR), ("RETRY", None)),
        (Discarded(exc=ERROR), ("FAILURE", ERROR)),  # type: ignore[arg-type]
        (ERROR, ("FAILURE", ERROR)),
    ],
)
def test_celery_is_told_a_state_by_what_is_raised(raised: Exception, state: Any) -> None:
    assert state_of(raised) == (state[0], state[1] or raised)


def test_wrapper_that_fails_after_the_body_is_a_failure_of_the_task(app: Celery) -> None:
    """That ``run`` has returned does not say that the work is done: it may not be committed."""

    class Committing(ResilientTask):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            super().__call__(*args, **kwargs)
            raise TransientError("the commit failed")

    @app.task(base=Committing)
    def sync() -> int:
        return 3

    task = app.tasks[sync.name]
    task.__trace__ = trace.build_tracer(task.name, task, app=app)
    einfo, *_ = task.__trace__("1", (), {}, {"id": "1", "task": task.name, "delivery_info": {}})
    result = carried(einfo)
    assert result is not None
    assert isinstance(result.decision, RetryLater)
