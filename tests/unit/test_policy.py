"""A failure goes in, one decision comes out, and what cannot be meant is refused before that."""

from __future__ import annotations

import copy
import logging
import pickle
from datetime import timedelta
from math import inf, isfinite, nan
from random import Random
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import (
    Discard,
    PermanentError,
    RateLimitedError,
    Snooze,
    TransientError,
)
from celery_resilience.policy.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.policy.default import UNSTATED
from celery_resilience.policy.policy import DEFAULT, Policy, on
from celery_resilience.policy.rules import Rule


class Timeout(Exception):
    """A call took too long."""


class CardDeclined(Exception):
    """A failure that no retry can help."""


class OrderCancelled(Exception):
    """A failure that nobody minds."""


class RateLimited(Exception):
    """A service asks for patience."""

    def __init__(self, retry_after: Any = None) -> None:
        super().__init__("slow down")
        self.retry_after = retry_after


class NoSuchCustomer(PermanentError, LookupError):
    """A task's own word, and a builtin's kin."""


def verdict(kind: Kind = Kind.UNKNOWN, **facts: Any) -> Verdict:
    """A finding of *kind*."""
    return Verdict(kind, **{"rule": f"test.{kind}", "category": "test", "hint": "", **facts})


def failure(
    exception: BaseException | None = None, kind: Kind = Kind.UNKNOWN, **facts: Any
) -> Failure:
    """A first attempt that failed at once, but for *facts*."""
    known: dict[str, Any] = {
        "exception": exception or Timeout(),
        "verdict": verdict(kind),
        "task": "shop.charge",
        "attempt": 1,
        "retries": 0,
        "age": 0.0,
    }
    return Failure(**{**known, **facts})


def decide(
    policy: Policy, *args: Any, call_user_code: bool = True, seed: int = 1, **facts: Any
) -> Decision:
    """What *policy* decides about ``failure(*args, **facts)``."""
    return policy.decide(failure(*args, **facts), Random(seed), call_user_code=call_user_code)


def delay_of(decision: Decision) -> float:
    """The delay of what must be a retry."""
    assert isinstance(decision, RetryLater)
    return decision.delay


PAYMENT = Policy(
    on(CardDeclined).dead_letter(),
    on(OrderCancelled).discard(),
    on(RateLimited).retry(max_retries=20, delay=lambda exc: exc.retry_after),
    on(Timeout, ConnectionError).retry(max_retries=8, backoff=2, backoff_max=600),
)


# The rules


def test_each_error_gets_what_its_rule_says() -> None:
    """The policy of the design's first page."""
    assert decide(PAYMENT, CardDeclined()) == GiveUp(Reason.PERMANENT, "rule 1 (CardDeclined)")
    assert decide(PAYMENT, OrderCancelled()) == Drop("discarded", "rule 2 (OrderCancelled)")
    assert decide(PAYMENT, RateLimited(12)) == RetryLater(12, True, "rule 3 (RateLimited)")
    retry = decide(PAYMENT, ConnectionResetError())
    assert isinstance(retry, RetryLater)
    assert retry.rule == "rule 4 (Timeout, ConnectionError)"
    assert retry.delay <= 2


def test_old_name_of_the_decision_about_a_requeue_warns() -> None:
    failed = failure(ValueError())
    with pytest.warns(DeprecationWarning, match="decide_requeue"):
        told = Policy(jitter="none").put_back(failed, Random(1))
    assert told == Policy(jitter="none").decide_requeue(failed, Random(1))


def test_first_matching_rule_wins() -> None:
    """As with except: the narrow one before the wide one."""
    policy = Policy(
        on(FileNotFoundError).dead_letter("lost_files"),
        on(OSError).retry(max_retries=1),
        on(Exception).discard("who cares"),
    )
    assert decide(policy, FileNotFoundError()) == GiveUp(
        Reason.PERMANENT, "rule 1 (FileNotFoundError)", "lost_files"
    )
    assert isinstance(decide(policy, PermissionError()), RetryLater)
    assert decide(policy, KeyError()) == Drop("who cares", "rule 3 (Exception)")


def test_fatal_types_take_precedence() -> None:
    """Table C1: put first they win, and put last they are refused."""
    policy = Policy(on(ConnectionRefusedError).dead_letter(), on(ConnectionError).retry())
    assert isinstance(decide(policy, ConnectionRefusedError()), GiveUp)
    assert isinstance(decide(policy, ConnectionResetError()), RetryLater)
    with pytest.raises(ValueError, match=r"rule 2 .* can never match"):
        Policy(on(ConnectionError).retry(), on(ConnectionRefusedError).dead_letter())


def test_retries_go_on_until_a_total_time_is_spent() -> None:
    """Table C2: a limit of time and none of number."""
    policy = Policy(max_retries=None, max_elapsed=60, backoff=5, shape="fixed", jitter="none")
    assert decide(policy, retries=500, age=55.0) == RetryLater(5, True, "classifier: test.unknown")
    assert decide(policy, retries=1, age=55.1) == GiveUp(
        Reason.DEADLINE, "classifier: test.unknown"
    )


def test_every_exception_type_can_have_limits_and_waits_of_its_own() -> None:
    """Table C3, C7: a policy per exception type, each back-off pluggable."""
    policy = Policy(
        on(Timeout).retry(max_retries=5, backoff=10, shape="linear", jitter="none"),
        on(KeyError).retry(max_retries=1, shape=lambda attempt: 7.0, jitter="none"),
        on(OSError).retry(max_retries=2, delay=timedelta(minutes=1)),
    )
    assert delay_of(decide(policy, Timeout(), retries=4)) == 50
    assert delay_of(decide(policy, KeyError())) == 7
    assert delay_of(decide(policy, OSError(), retries=1)) == 60
    assert isinstance(decide(policy, KeyError(), retries=1), GiveUp)


def test_three_attempts_in_all_then_it_fails() -> None:
    """Table D1: max attempts 3, a list to retry and a list to ignore."""
    policy = Policy(
        on(ValueError).dead_letter(), on(OSError).retry(max_retries=2), unmatched="give_up"
    )
    assert isinstance(decide(policy, OSError(), attempt=2, retries=1), RetryLater)
    assert decide(policy, OSError(), attempt=3, retries=2) == GiveUp(
        Reason.EXHAUSTED, "rule 2 (OSError)"
    )
    assert isinstance(decide(policy, ValueError()), GiveUp)


@pytest.mark.parametrize(
    ("call", "retries", "first", "expected"),
    [
        ("ChatGPT lyrics", 3, 2, [2, 4, 8]),
        ("Suno generate", 3, 1, [1, 2, 4]),
        ("Suno status", 2, 1, [1, 2]),
        ("Suno timestamps", 2, 2, [2, 4]),
        ("Creatomate template", 2, 1, [1, 2]),
        ("Creatomate render", 3, 1, [1, 2, 4]),
        ("Creatomate status", 2, 1, [1, 2]),
    ],
)
def test_policy_per_api_call_waits_as_the_plan_says(
    call: str, retries: int, first: float, expected: list[float]
) -> None:
    """Table B5, one policy per row."""
    policy = Policy(max_retries=retries, backoff=first, backoff_max=30, jitter="none", name=call)
    waits = [delay_of(decide(policy, attempt=n + 1, retries=n)) for n in range(retries)]
    assert waits == expected
    assert isinstance(decide(policy, attempt=retries + 1, retries=retries), GiveUp)


def test_condition_narrows_a_rule_down() -> None:
    """A rule with when= matches what it answers yes to; the next rules see the others."""
    policy = Policy(
        on(RateLimited, when=lambda exc: exc.retry_after > 60).dead_letter(),
        on(RateLimited).retry(delay=1),
    )
    assert isinstance(decide(policy, RateLimited(61)), GiveUp)
    assert isinstance(decide(policy, RateLimited(60)), RetryLater)
    assert decide(policy, RateLimited(61)).rule == "rule 1 (RateLimited, when <lambda>)"


def test_rules_omissions_are_as_the_policy_says() -> None:
    """0 and None are given."""
    rule = on(Timeout).retry(backoff_max=50)
    policy = Policy(rule, max_retries=7, backoff=3, factor=4, jitter=None, max_elapsed=99)
    terms = policy.terms(rule)
    assert (terms.max_retries, terms.max_elapsed) == (7, 99)
    assert [terms.backoff.ceiling(n) for n in (1, 2, 3, 4)] == [3, 12, 48, 50]
    never = on(Timeout).retry(max_retries=0, backoff=0)
    endless = on(Timeout).retry(max_retries=None, max_elapsed=None)
    assert policy.replace(rules=[never]).terms(never).max_retries == 0
    assert policy.terms(endless).max_elapsed is None
    assert isinstance(decide(Policy(endless), retries=10**6, age=1e9), RetryLater)
    assert decide(Policy(never)) == GiveUp(Reason.EXHAUSTED, "rule 1 (Timeout)")


# Verdicts


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.EXPECTED, Drop("expected", "classifier: test.expected")),
        (Kind.PERMANENT, GiveUp(Reason.PERMANENT, "classifier: test.permanent")),
        (Kind.TRANSIENT, RetryLater(1, True, "classifier: test.transient")),
        (Kind.UNKNOWN, RetryLater(1, True, "classifier: test.unknown")),
        (Kind.RATE_LIMITED, RetryLater(1, False, "classifier: test.rate_limited")),
    ],
)
def test_unmatched_failure_goes_by_the_verdict(kind: Kind, expected: Decision) -> None:
    """Every kind of verdict has one decision."""
    assert decide(Policy(jitter="none"), KeyError(), kind) == expected


def test_rule_overrules_the_verdict() -> None:
    """What the owner wrote down is known better than what the classifier found."""
    policy = Policy(on(Timeout).retry(max_retries=1))
    for kind in Kind:
        assert isinstance(decide(policy, Timeout(), kind), RetryLater)


def test_give_up_means_that_nobody_asked_for_a_retry() -> None:
    """unmatched="give_up": no verdict makes a retry, and throws still leaves no letter."""
    policy = Policy(on(Timeout).retry(), unmatched="give_up")
    nobody = GiveUp(Reason.PERMANENT, "no rule asks for a retry")
    for kind in set(Kind) - {Kind.EXPECTED}:
        assert decide(policy, KeyError(), kind) == nobody
    assert isinstance(decide(policy, KeyError(), Kind.EXPECTED), Drop)
    assert isinstance(decide(policy, Timeout()), RetryLater)


def test_rate_limits_that_the_classifier_finds_are_not_counted() -> None:
    """They go on past max_retries until the deadline, at least 1 s apart."""
    policy = Policy(max_retries=1, backoff=0.01, shape="fixed")
    limited = decide(policy, KeyError(), Kind.RATE_LIMITED, attempt=50, retries=1, age=86_000.0)
    assert limited == RetryLater(1, False, "classifier: test.rate_limited")
    assert decide(policy, KeyError(), Kind.RATE_LIMITED, age=86_399.5) == GiveUp(
        Reason.DEADLINE, "classifier: test.rate_limited"
    )


@pytest.mark.parametrize(
    ("terms", "counted"),
    [
        ({}, False),
        ({"max_retries": 5}, True),
        ({"max_retries": None}, True),
        ({"counted": True}, True),
        ({"counted": False}, False),
    ],
)
def test_rule_that_names_max_retries_counts_rate_limits(
    terms: dict[str, Any], counted: bool
) -> None:
    """Without a number of its own a rule leaves them uncounted."""
    decision = decide(Policy(on(Timeout).retry(**terms)), Timeout(), Kind.RATE_LIMITED)
    assert isinstance(decision, RetryLater)
    assert decision.counted is counted


def test_uncounted_retry_waits_at_least_a_second() -> None:
    """Nothing but time ends a series of them."""
    policy = Policy(on(Timeout).retry(counted=False, delay=0))
    assert decide(policy, retries=3, attempt=99) == RetryLater(1, False, "rule 1 (Timeout)")


def test_verdicts_own_limit_lowers_the_policys() -> None:
    """It never raises it, and does not count against a rule that names its own."""
    once = verdict(Kind.TRANSIENT, max_retries=1)
    many = verdict(Kind.TRANSIENT, max_retries=99)
    assert isinstance(decide(DEFAULT, verdict=once, retries=0), RetryLater)
    assert isinstance(decide(DEFAULT, verdict=once, retries=1), GiveUp)
    assert isinstance(decide(DEFAULT, verdict=many, retries=3), GiveUp)
    assert isinstance(decide(Policy(on(Timeout).retry()), verdict=once, retries=1), GiveUp)
    named = Policy(on(Timeout).retry(max_retries=8))
    assert isinstance(decide(named, verdict=once, retries=7), RetryLater)


# Where nobody has said anything


@pytest.mark.parametrize(
    ("kind", "retries"), [(Kind.TRANSIENT, 20), (Kind.UNKNOWN, 3), (Kind.PERMANENT, 0)]
)
def test_default_policy_waits_out_an_outage_and_not_a_bug(kind, retries) -> None:
    for used in range(retries):
        assert isinstance(decide(UNSTATED, kind=kind, retries=used), RetryLater)
    assert isinstance(decide(UNSTATED, kind=kind, retries=retries), GiveUp)


def test_default_policy_differs_from_a_written_one_for_transient_failures_only() -> None:
    """±50 % around 8 s; what is unknown or rate limited waits as by a written policy."""
    for seed in range(200):
        waited = decide(UNSTATED, kind=Kind.TRANSIENT, retries=3, seed=seed)
        assert 4 <= delay_of(waited) <= 12
        for kind in (Kind.UNKNOWN, Kind.RATE_LIMITED):
            facts = {"kind": kind, "retries": 2, "attempt": 3, "seed": seed}
            assert decide(UNSTATED, **facts) == decide(DEFAULT, **facts)


def test_written_policys_limits_are_for_all_that_its_rules_do_not_match() -> None:
    for policy in (Policy(max_retries=5), UNSTATED.replace(max_retries=5)):
        for kind in (Kind.TRANSIENT, Kind.UNKNOWN):
            assert isinstance(decide(policy, kind=kind, retries=4), RetryLater)
            assert isinstance(decide(policy, kind=kind, retries=5), GiveUp)


# The server's delay


def test_servers_delay_is_a_floor_that_the_maximum_does_not_shorten() -> None:
    """B6: retry_after plus U(0, ceiling), for verdicts and for rules."""
    asked = verdict(Kind.RATE_LIMITED, retry_after=3000.0)
    for policy in (Policy(backoff=10), Policy(on(Timeout).retry(backoff=10))):
        drawn = [
            delay_of(policy.decide(failure(verdict=asked), Random(seed))) for seed in range(300)
        ]
        assert 3000 <= min(drawn) < 3001
        assert 3009 < max(drawn) <= 3010


def test_rules_own_delay_is_the_delay() -> None:
    """No jitter and no server's delay is added to what the owner computes."""
    asked = verdict(Kind.TRANSIENT, retry_after=3000.0)
    policy = Policy(on(Timeout).retry(delay=5))
    assert delay_of(decide(policy, verdict=asked)) == 5


def test_servers_delay_beyond_the_deadline_is_given_up_at_once() -> None:
    """A Retry-After in the year 2099 does not park a task for decades."""
    asked = verdict(Kind.RATE_LIMITED, retry_after=2.3e9)
    assert decide(DEFAULT, verdict=asked) == GiveUp(
        Reason.DEADLINE, "classifier: test.rate_limited"
    )


@pytest.mark.parametrize("retry_after", [nan, inf, -5.0])
def test_servers_delay_that_is_none_is_ignored(retry_after: float) -> None:
    """NaN would pass every limit."""
    asked = verdict(Kind.TRANSIENT, retry_after=retry_after)
    assert delay_of(decide(Policy(max_elapsed=None), verdict=asked)) <= 1


# Limits


def test_counted_retry_waits_by_the_counted_ones_before_it() -> None:
    """Ten snoozes in between do not make the first real retry wait longer."""
    policy = Policy(backoff=1, jitter="none", max_retries=9)
    assert delay_of(decide(policy, Timeout(), attempt=12, retries=1)) == 2
    limited = decide(policy, Timeout(), Kind.RATE_LIMITED, attempt=5, retries=1)
    assert delay_of(limited) == 16


def test_max_retries_zero_never_retries_and_none_never_ends() -> None:
    """0 is a number; None is no limit."""
    assert decide(Policy(max_retries=0)) == GiveUp(Reason.EXHAUSTED, "classifier: test.unknown")
    assert isinstance(decide(Policy(max_retries=None), retries=10**9), RetryLater)


def test_retry_that_would_come_after_expires_is_given_up_at_once() -> None:
    """Whether it is due a moment before or exactly then makes the difference."""
    policy = Policy(on(Timeout).retry(delay=10))
    assert isinstance(decide(policy, expires_in=10.1), RetryLater)
    assert decide(policy, expires_in=10.0) == GiveUp(Reason.EXPIRED, "rule 1 (Timeout)")
    assert decide(policy, expires_in=-3.0) == GiveUp(Reason.EXPIRED, "rule 1 (Timeout)")


@pytest.mark.parametrize("reason", [Reason.TIME_LIMIT, Reason.WORKER_LOST])
def test_cause_of_death_is_not_hidden_by_the_policys_word(reason: Reason) -> None:
    """A time limit that used up its retries is a time limit."""
    dead_letter = Policy(on(Timeout).dead_letter())
    for given_up in (
        decide(DEFAULT, retries=3, reason=reason),
        decide(DEFAULT, age=1e6, reason=reason),
        decide(DEFAULT, KeyError(), Kind.PERMANENT, reason=reason),
        decide(dead_letter, reason=reason),
    ):
        assert isinstance(given_up, GiveUp)
        assert given_up.reason is reason
    expired = decide(DEFAULT, expires_in=0.0, reason=reason)
    assert isinstance(expired, GiveUp)
    assert expired.reason is Reason.EXPIRED


def test_times_that_are_no_numbers_end_in_a_dead_letter() -> None:
    """NaN from a foreign header passes a careless comparison and would be retried for ever."""
    assert decide(DEFAULT, age=nan) == GiveUp(Reason.DEADLINE, "classifier: test.unknown")
    assert decide(DEFAULT, expires_in=nan) == GiveUp(Reason.EXPIRED, "classifier: test.unknown")


def test_attempts_that_were_miscounted_are_retried_as_the_first() -> None:
    """A header may say 0, or less."""
    for kind in (Kind.TRANSIENT, Kind.RATE_LIMITED):
        assert delay_of(decide(DEFAULT, Timeout(), kind, attempt=-1, retries=-2)) <= 1


# What a task says itself


def test_snooze_is_uncounted_and_takes_at_least_a_second() -> None:
    """Its delay is exactly what the task asked for."""
    assert decide(DEFAULT, Snooze(60), retries=3) == RetryLater(
        60, False, "raised by the task: Snooze"
    )
    assert delay_of(decide(DEFAULT, Snooze(0))) == 1
    assert decide(DEFAULT, Snooze(60), age=86_390.0) == GiveUp(
        Reason.DEADLINE, "raised by the task: Snooze"
    )


def test_discard_is_dropped_with_its_why() -> None:
    """The owner's word, and it is counted under it."""
    assert decide(DEFAULT, Discard("order was cancelled")) == Drop(
        "order was cancelled", "raised by the task: Discard"
    )


def test_rule_for_everything_does_not_overrule_what_a_task_says_itself() -> None:
    """on(Exception) is no reason to retry a PermanentError or to bury a Snooze."""
    catch_all = Policy(on(Exception).retry(max_retries=20))
    assert isinstance(decide(catch_all, PermanentError(), Kind.PERMANENT), GiveUp)
    assert isinstance(decide(catch_all, NoSuchCustomer(), Kind.PERMANENT), GiveUp)
    assert isinstance(decide(catch_all, Discard()), Drop)
    assert delay_of(decide(catch_all, Snooze(60))) == 60
    burying = Policy(on(Exception).dead_letter())
    assert delay_of(decide(burying, Snooze(60))) == 60
    assert isinstance(decide(burying, TransientError(), Kind.TRANSIENT), RetryLater)
    dropping = Policy(on(Exception).discard())
    assert isinstance(decide(dropping, PermanentError(), Kind.PERMANENT), GiveUp)


def test_rule_for_everything_sets_the_terms_where_it_agrees_with_the_task() -> None:
    """A TransientError is retried under the rule's limits, a PermanentError in its queue."""
    policy = Policy(on(Exception).retry(max_retries=20))
    assert isinstance(decide(policy, TransientError(), retries=19), RetryLater)
    policy = Policy(on(Exception).dead_letter("billing_dead"))
    assert decide(policy, PermanentError(), Kind.PERMANENT) == GiveUp(
        Reason.PERMANENT, "rule 1 (Exception)", "billing_dead"
    )


def test_rule_that_names_our_exceptions_decides_about_them() -> None:
    """Named is meant."""
    policy = Policy(on(NoSuchCustomer).retry(max_retries=1), on(Snooze).dead_letter())
    assert isinstance(decide(policy, NoSuchCustomer(), Kind.PERMANENT), RetryLater)
    assert isinstance(decide(policy, Snooze(3)), GiveUp)


def test_task_may_ask_for_a_retry_where_no_rule_does() -> None:
    """With unmatched="give_up" a TransientError is still somebody's word."""
    policy = Policy(unmatched="give_up")
    assert isinstance(decide(policy, TransientError(), Kind.TRANSIENT), RetryLater)
    limited = decide(policy, RateLimitedError(), Kind.RATE_LIMITED, retries=99)
    assert isinstance(limited, RetryLater)
    assert isinstance(decide(policy, TransientError(), Kind.TRANSIENT, retries=3), GiveUp)


def test_snooze_that_lost_its_delay_waits_for_the_backoff() -> None:
    """A subclass that never called super().__init__ is still a snooze."""

    class Later(Snooze):
        def __init__(self) -> None:
            pass

    assert 1 <= delay_of(decide(DEFAULT, Later())) <= 4


# The user's own functions


def explode(_: object) -> Any:
    """Fail as a function of the user's might."""
    raise RuntimeError("no such attribute")


class Unprintable:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


GARBAGE = [-1, -0.001, nan, inf, -inf, True, False, "30", None, [], 10**400, Unprintable()]


@pytest.mark.parametrize("returned", GARBAGE, ids=lambda value: type(value).__name__)
def test_delay_function_that_returns_no_delay_leaves_it_to_the_backoff(
    returned: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the task, the rule and what was got."""
    policy = Policy(
        on(KeyError).discard(),
        on(Timeout).retry(delay=lambda exc: returned, backoff=7, jitter="none"),  # type: ignore[arg-type]
    )
    assert delay_of(decide(policy)) == 7
    (record,) = caplog.records
    assert record.name == "celery_resilience.user_code"  # what a user may filter by
    assert record.levelno == logging.WARNING
    assert "shop.charge: rule 2 (Timeout): delay= returned" in record.getMessage()


def test_delay_function_that_raises_leaves_it_to_the_backoff(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It costs a line in the log, not the task."""
    policy = Policy(on(Timeout).retry(delay=explode, backoff=7, jitter="none"))
    assert delay_of(decide(policy)) == 7
    assert "rule 1 (Timeout): delay= raised RuntimeError('no such attribute')" in caplog.text


@pytest.mark.parametrize("returned", [0, 3, 2.5, timedelta(seconds=9)])
def test_delay_function_may_return_any_seconds(returned: Any) -> None:
    """0 means 0; a timedelta is a delay too."""
    policy = Policy(on(Timeout).retry(delay=lambda exc: returned))
    expected = returned.total_seconds() if isinstance(returned, timedelta) else returned
    assert delay_of(decide(policy)) == expected


def test_condition_that_raises_does_not_match(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is buried or dropped on a condition that could not be checked."""
    policy = Policy(on(Timeout, when=explode).discard(), on(Timeout).retry())
    assert isinstance(decide(policy), RetryLater)
    assert "rule 1 (Timeout, when explode): when= raised RuntimeError" in caplog.text


@pytest.mark.parametrize("shape", [explode, *(lambda n, got=got: got for got in GARBAGE)])
def test_shape_function_that_fails_leaves_it_to_the_exponential_shape(
    shape: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same first ceiling, factor and cap."""
    policy = Policy(backoff=3, shape=shape, jitter="none")
    assert delay_of(decide(policy, retries=1)) == 6
    assert "classifier: test.unknown: shape failed with" in caplog.text


def test_users_functions_are_not_called_where_the_parent_decides(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A condition does not match there, and the backoff stands in for the rest."""
    called: list[object] = []
    policy = Policy(
        on(Timeout, when=called.append).discard(),
        on(Timeout).retry(delay=called.append, shape=called.append, backoff=3, jitter="none"),  # type: ignore[arg-type]
    )
    assert delay_of(decide(policy, call_user_code=False)) == 3
    assert called == []
    assert caplog.records == []


def test_delay_is_not_asked_for_when_the_retries_are_used_up() -> None:
    """A function of the user's may be slow."""
    called: list[object] = []
    policy = Policy(on(Timeout).retry(max_retries=1, delay=called.append))  # type: ignore[arg-type]
    assert isinstance(decide(policy, retries=1), GiveUp)
    assert called == []


# Every failure gets a decision

EXCEPTIONS: list[BaseException] = [
    *(Timeout(), CardDeclined(), RateLimited(3), RateLimited("soon"), ConnectionResetError()),
    *(Snooze(5), Snooze(1e9), Discard(), PermanentError(), TransientError(), RateLimitedError()),
    *(NoSuchCustomer(), BaseException(), MemoryError()),
]
POLICIES = [
    DEFAULT,
    PAYMENT,
    Policy(max_retries=None, max_elapsed=None, jitter=0.3),
    Policy(unmatched="give_up", jitter=None),
    Policy(on(Exception, when=explode).retry(), on(BaseException).retry(delay=explode)),
    Policy(on(Exception).retry(counted=False, shape=explode)),
    Policy(on(RateLimited).retry(delay=lambda exc: exc.retry_after, max_elapsed=5)),
]
any_seconds = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 86400.0]))


@given(
    policy=st.sampled_from(POLICIES),
    exception=st.sampled_from(EXCEPTIONS),
    found=st.builds(
        verdict,
        st.sampled_from(list(Kind)),
        retry_after=st.one_of(st.none(), any_seconds),
        max_retries=st.one_of(st.none(), st.integers(-1, 5)),
    ),
    attempt=st.integers(-1, 10**6),
    retries=st.integers(-1, 10**6),
    age=any_seconds,
    expires_in=st.one_of(st.none(), any_seconds),
    reason=st.sampled_from([None, Reason.TIME_LIMIT, Reason.WORKER_LOST]),
    call_user_code=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_failure_gets_a_decision_within_the_limits(
    policy: Policy,
    exception: BaseException,
    found: Verdict,
    attempt: int,
    retries: int,
    age: float,
    expires_in: float | None,
    reason: Reason | None,
    call_user_code: bool,
    seed: int,
) -> None:
    """Foreign headers can hold anything, and NaN passes every careless comparison."""
    facts = Failure(exception, found, "shop.charge", attempt, retries, age, expires_in, reason)
    decision = policy.decide(facts, Random(seed), call_user_code=call_user_code)
    assert isinstance(decision, (RetryLater, GiveUp, Drop))
    assert decision.rule
    again = policy.decide(facts, Random(seed), call_user_code=call_user_code)
    assert again == decision
    if isinstance(decision, RetryLater):
        assert isfinite(decision.delay)
        assert decision.delay >= (0 if decision.counted else 1)
        assert expires_in is None or decision.delay < expires_in
        assert policy.max_elapsed is None or age + decision.delay <= policy.max_elapsed


# Refused at definition

#: `on` for what a type checker would refuse as well.
wrong: Any = on


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (
            lambda: [on(ConnectionError, OSError).retry(), on(FileNotFoundError).retry()],
            r"^rule 2 \(FileNotFoundError\) can never match: rule 1 \(ConnectionError, OSError\) "
            r"comes first and covers it$",
        ),
        (
            lambda: [on(KeyError).retry(), on(OSError).retry(), on(KeyError, IOError).retry()],
            r"^rule 3 \(KeyError, OSError\) can never match: rule 1 \(KeyError\) and "
            r"rule 2 \(OSError\) come first and cover it$",
        ),
        (
            lambda: [on(Timeout).retry(), on(Timeout, when=explode).dead_letter()],
            r"rule 2 \(Timeout, when explode\) can never match",
        ),
        (
            lambda: [on(OSError).retry(), on(ConnectionError, ValueError).dead_letter()],
            r"rule 2 \(ConnectionError, ValueError\) can never match ConnectionError: "
            r"rule 1 \(OSError\) comes first and retries it; put",
        ),
        (lambda: [on(Timeout)], r"rule 1 \(Timeout\): .*add \.retry\(\), \.dead_letter\(\) or"),
        (lambda: [Timeout], r"rule 1 is <class .*Timeout'>: write on\(SomeError\)\.retry\(\)"),
        (lambda: [wrong().retry()], r"rule 1 \(\): on\(\) needs an exception class"),
        (lambda: [wrong("Timeout").retry()], r"rule 1 \('Timeout'\): .* got 'Timeout'"),
        (
            lambda: [wrong(int).retry()],
            r"rule 1 \(int\): on\(\) takes exception classes, got <class",
        ),
        (lambda: [wrong(Timeout()).retry()], r"on\(\) takes exception classes, got Timeout\(\)"),
        (lambda: [wrong((Timeout, OSError)).retry()], r"write on\(\*these\)"),
        (
            lambda: [wrong(Timeout, when=3).retry()],
            r"rule 1 \(Timeout, when 3\): when takes a func",
        ),
        (
            lambda: [on(Timeout).retry(max_retries=-1)],
            r"rule 1 \(Timeout\): max_retries takes .*-1",
        ),
        (lambda: [on(Timeout).retry(max_retries=True)], "max_retries takes a whole number .* True"),
        (
            lambda: [wrong(Timeout).retry(max_retries=2.0)],
            r"max_retries takes a whole number .* 2\.0",
        ),
        (lambda: [on(Timeout).retry(delay=-1)], r"rule 1 \(Timeout\): delay must be finite"),
        (lambda: [on(Timeout).retry(delay=nan)], "delay must be finite and at least 0, got nan"),
        (
            lambda: [wrong(Timeout).retry(delay="30")],
            "delay takes seconds, a timedelta or a function",
        ),
        (lambda: [on(Timeout).retry(delay=True)], "delay takes seconds, .* got True"),
        (lambda: [on(Timeout).retry(backoff=601)], r"rule 1 \(Timeout\): backoff 601 is more than"),
        (lambda: [on(Timeout).retry(jitter=2)], r"rule 1 \(Timeout\): jitter takes 'full'"),
        (
            lambda: [wrong(Timeout).retry(shape="fix")],
            r"rule 1 \(Timeout\): .*did you mean 'fixed'",
        ),
        (lambda: [on(Timeout).retry(max_elapsed=-1)], "max_elapsed must be finite and at least 0"),
        (lambda: [on(Timeout).retry(max_elapsed=inf)], "max_elapsed must be finite"),
        (lambda: [wrong(Timeout).retry(counted="no")], "counted takes True or False, got 'no'"),
        (lambda: [on(Timeout).retry(counted=False, max_retries=3)], "drop it, or drop counted"),
        (lambda: [wrong(Timeout).dead_letter(queue=3)], "queue takes a text, got 3"),
        (lambda: [on(Timeout).dead_letter(queue="")], "queue is an empty text: leave it out"),
        (lambda: [wrong(Timeout).discard(why=7)], "why takes a text, got 7"),
    ],
)
def test_rule_that_cannot_be_meant_is_refused(rules: Any, text: str) -> None:
    """The error says which rule, what was got and the way out."""
    with pytest.raises((TypeError, ValueError), match=text):
        Policy(*rules())


@pytest.mark.parametrize(
    "cls", [SystemExit, KeyboardInterrupt, GeneratorExit, Retry, Ignore, Reject, WorkerShutdown]
)
def test_control_flow_cannot_have_a_rule(cls: type[BaseException]) -> None:
    """It is looked at before any rule."""
    with pytest.raises(TypeError, match=rf"rule 1 \({cls.__name__}\): .*is control flow"):
        Policy(on(cls).retry())


def test_users_own_retry_class_is_no_control_flow() -> None:
    """Only Celery's classes of these names are."""
    mine = type("Retry", (Exception,), {})
    assert isinstance(decide(Policy(on(mine).retry()), mine()), RetryLater)


def test_rules_that_overlap_without_shadowing_are_fine() -> None:
    """As with except: a condition covers nothing, and the wider rule comes later."""
    Policy(
        on(ConnectionResetError, when=explode).dead_letter(),
        on(ConnectionResetError).dead_letter(),
        on(ConnectionResetError, ConnectionAbortedError).retry(),
        on(ConnectionError).retry(),
        on(ConnectionRefusedError, OSError).retry(max_retries=1),
        on(Exception).retry(),
        on(NoSuchCustomer).dead_letter("nobody"),
    )


@pytest.mark.parametrize(
    ("given_terms", "text"),
    [
        ({"max_retries": -1}, "^policy: max_retries takes a whole number of at least 0"),
        ({"max_retries": "3"}, "^policy: max_retries takes a whole number .* got '3'"),
        ({"backoff": "1"}, "^policy: backoff must be a number, got '1'"),
        (
            {"backoff": 1000},
            "^policy: backoff 1000 is more than backoff_max 600: raise backoff_max",
        ),
        ({"backoff_max": nan}, "^policy: backoff_max must be finite"),
        ({"factor": 0.5}, "^policy: factor must be finite and at least 1, got 0.5"),
        ({"jitter": True}, "^policy: jitter takes 'full', 'none' or a proportion"),
        ({"shape": "lineal"}, "^policy: shape takes .*did you mean 'linear'"),
        ({"max_elapsed": -1}, "^policy: max_elapsed must be finite and at least 0, got -1"),
        ({"max_elapsed": True}, "^policy: max_elapsed must be a number, got True"),
        ({"name": 3}, "^policy: name takes a text, got 3"),
        ({"unmatched": "giveup"}, "^policy: unmatched takes .*did you mean 'give_up'"),
        ({"unmatched": "giveup", "name": "pay"}, "^policy 'pay': unmatched takes"),
        ({"max_retry": 3}, "max_retry"),
    ],
)
def test_policy_that_cannot_be_meant_is_refused(given_terms: dict[str, Any], text: str) -> None:
    """The error says where."""
    with pytest.raises((TypeError, ValueError), match=text):
        Policy(**given_terms)


def test_policys_name_is_in_the_errors_of_its_rules() -> None:
    """An application has many rules number 1."""
    with pytest.raises(ValueError, match=r"^policy 'payments': rule 1 \(Timeout\): delay must"):
        Policy(on(Timeout).retry(delay=-1), name="payments")


# A value


def test_default_numbers_are_those_of_the_design() -> None:
    """They are printed in the docs."""
    written_out = Policy(
        max_retries=3,
        backoff=1,
        factor=2,
        backoff_max=600,
        shape="exponential",
        jitter="full",
        max_elapsed=86400,
        name=None,
        unmatched="classify",
    )
    assert written_out == DEFAULT
    assert DEFAULT.rules == ()


def test_policy_shows_what_is_not_default() -> None:
    """Readable as it was written."""
    assert repr(DEFAULT) == "Policy()"
    policy = Policy(
        on(CardDeclined).dead_letter("cards"),
        on(OrderCancelled, when=explode).discard(),
        on(Timeout, OSError).retry(max_retries=8, delay=explode, jitter=None),
        max_elapsed=None,
        name="payments",
    )
    assert repr(policy) == (
        "Policy(on(CardDeclined).dead_letter(queue='cards'), "
        "on(OrderCancelled, when=explode).discard(), "
        "on(Timeout, OSError).retry(max_retries=8, jitter=None, delay=explode), "
        "max_elapsed=None, name='payments')"
    )
    assert repr(on(Timeout, when=explode)) == "on(Timeout, when=explode)"


def test_policy_is_a_value() -> None:
    """Equal by its parts, hashable, copied and pickled, and nothing in it can be set."""
    rule = on(Timeout).retry(max_retries=8, max_elapsed=None)
    policy = Policy(on(CardDeclined, when=explode).dead_letter(), rule, jitter=0.2)
    assert policy == Policy(*policy.rules, jitter=0.2)
    assert len({policy, policy.replace(), copy.deepcopy(policy)}) == 1
    assert pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(AttributeError):
        policy.max_retries = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        rule.max_retries = 4  # type: ignore[misc]


def test_replace_gives_a_new_policy() -> None:
    """A change is a new value, and it is checked like one."""
    changed = PAYMENT.replace(max_retries=5, name="payments")
    assert (changed.max_retries, changed.name, changed.rules) == (5, "payments", PAYMENT.rules)
    assert PAYMENT.max_retries == 3
    assert PAYMENT.replace(rules=()) == DEFAULT
    with pytest.raises(ValueError, match="backoff 700 is more than"):
        PAYMENT.replace(backoff=700)


def test_on_makes_frozen_rules() -> None:
    """The three treatments, each a value of its own."""
    match = on(Timeout)
    for rule in (match.retry(), match.dead_letter(), match.discard()):
        assert isinstance(rule, Rule)
        assert rule.types == (Timeout,)


def test_server_that_asks_for_decades_is_not_waited_for() -> None:
    """Without a deadline too: such a message would be parked and forgotten."""
    asked = verdict(Kind.RATE_LIMITED, retry_after=1e12)
    decision = decide(Policy(max_elapsed=None), verdict=asked)
    assert isinstance(decision, GiveUp)
    assert decision.reason is Reason.DEADLINE
