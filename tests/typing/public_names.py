"""What a user's type checker makes of the public names; nothing here is run.

mypy (``make lint``) and pyright (``test_public_names.py``) check it: each ``assert_type`` is a
promise, and each ignored error has to be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery
from typing_extensions import assert_type

import celery_resilience
from celery_resilience import (
    BrokerError,
    DeadLetter,
    DeadLetters,
    Decision,
    Discard,
    Drop,
    Failure,
    Filters,
    GiveUp,
    Kind,
    PermanentError,
    Policy,
    RateLimitedError,
    Reason,
    ResilienceError,
    ResilientTask,
    Retries,
    RetryContext,
    RetryLater,
    Snooze,
    TransientError,
    UnacceptableResult,
    Verdict,
    classify,
    install,
    on,
)
from celery_resilience.operate.dead_letters import Filed, Replayed
from celery_resilience.policy.backoff import Backoff
from celery_resilience.worker.flags import add_flags

app: Any = Celery("typed")

# Installing
assert_type(install(app), None)
assert_type(install(app, classify=True, only=["cron.*"]), None)
assert_type(add_flags(app), None)
assert_type(celery_resilience.__version__, str)

# Policies
policy = Policy(
    on(TimeoutError, ConnectionError).retry(max_retries=8, backoff=2.0),
    on(KeyError, when=lambda error: True).dead_letter(queue="keys"),
    on(LookupError).discard(),
    max_retries=5,
    max_elapsed=None,
    jitter="full",
)
assert_type(policy, Policy)
assert_type(policy.max_retries, "int | None")
assert_type(policy.replace(name="shop"), Policy)
assert_type(Backoff().backoff, float)
Policy(jitter="some")  # type: ignore[arg-type]
Policy(max_retries="5")  # type: ignore[arg-type]
Policy(max_retrys=5)  # type: ignore[call-arg]
on("KeyError")  # type: ignore[arg-type]
install(app, only=3)  # type: ignore[arg-type]


# Tasks
class Charge(ResilientTask):
    name = "shop.charge"
    failure_policy = policy
    dead_letter_queue = "dead.{queue}"

    def recover(self, failure: Failure) -> str:
        assert_type(failure.exception, BaseException)
        assert_type(failure.attempt, int)
        return "later"


def context_of(task: ResilientTask) -> None:
    assert_type(task.context, RetryContext)
    task.context["page"] = 2
    assert_type(task.policy_in_force, Policy)


# Decisions
def decide(decision: Decision) -> str:
    if isinstance(decision, RetryLater):
        assert_type(decision.delay, float)
        return "retry"
    if isinstance(decision, GiveUp):
        assert_type(decision.reason, Reason)
        return decision.reason.value
    assert_type(decision, Drop)
    return decision.rule


# Errors
def fail(which: int) -> None:
    if which == 1:
        raise TransientError("again", retry_after=30.0)
    if which == 2:
        raise RateLimitedError("patience", retry_after=30.0)
    if which == 3:
        raise PermanentError("never")
    if which == 4:
        raise Snooze(60.0)
    if which == 5:
        raise Discard("nobody wants it")
    error: ResilienceError = BrokerError("away") if which else UnacceptableResult("no")
    raise error


# The classifier
verdict = classify(ValueError())
assert_type(verdict, Verdict)
assert_type(verdict.kind, Kind)
classify("ValueError")  # type: ignore[arg-type]


# Letters and retries
def operate() -> None:
    with DeadLetters(app) as letters:
        for filed in letters.list(limit=20, filters=Filters(task="shop.*")):
            assert_type(filed, Filed)
            assert_type(filed.letter, DeadLetter)
            assert_type(filed.letter.reason, Reason)
        found: Iterator[Replayed] | Sequence[Replayed] = letters.replay("4f3a9c01b2d4")
        for replayed in found:
            assert_type(replayed, Replayed)
    with Retries(app) as retries:
        for changed in retries.run("all", limit=100):
            print(changed.result)
