"""Celery's own retry options keep the meaning that they have in Celery."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from celery.app.base import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import get_exponential_backoff_interval
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import PermanentError, Snooze, TransientError
from celery_resilience.policy.celery_options import policy_from_celery_options
from celery_resilience.policy.decision import Decision, Drop, Failure, GiveUp, Reason, RetryLater
from celery_resilience.policy.policy import Policy


class Timeout(Exception):
    """A failure that the task names."""


class ReadTimeout(Timeout):
    """A failure that the task excepts."""


CELERYS_DEFAULTS: dict[str, Any] = {
    "where": "shop.charge",
    "autoretry_for": (),
    "dont_autoretry_for": (),
    "max_retries": 3,
    "retry_backoff": False,
    "retry_backoff_max": 600,
    "retry_jitter": True,
    "default_retry_delay": 180,
    "retry_kwargs": {},
}


def options(**given: Any) -> Policy | None:
    """The policy of a task that gives *given* and has Celery's defaults for the rest."""
    return policy_from_celery_options(**{**CELERYS_DEFAULTS, **given})


def decide(policy: Policy | None, exception: BaseException | None = None, **facts: Any) -> Decision:
    """What *policy* makes of a failure of which nothing is known but *facts*."""
    assert policy is not None
    verdict = facts.pop("verdict", Verdict(Kind.UNKNOWN, "unknown", "unknown", ""))
    known: dict[str, Any] = {"attempt": 1, "retries": 0, "age": 0.0, **facts}
    failure = Failure(exception or Timeout(), verdict, "shop.charge", **known)
    return policy.decide(failure, Random(1))


def delays(policy: Policy | None, count: int) -> list[float]:
    """The delays before the first *count* retries."""
    found = [decide(policy, attempt=n + 1, retries=n) for n in range(count)]
    assert all(isinstance(decision, RetryLater) for decision in found)
    return [decision.delay for decision in found if isinstance(decision, RetryLater)]


def test_defaults_tested_here_are_celerys() -> None:
    """Should Celery change one, this table has to follow."""
    task = Celery().Task
    assert task.max_retries == CELERYS_DEFAULTS["max_retries"]
    assert task.default_retry_delay == CELERYS_DEFAULTS["default_retry_delay"]


def test_task_that_names_no_exception_asks_for_no_retry() -> None:
    """Other options alone retry nothing."""
    assert options() is None
    assert options(autoretry_for=None, retry_backoff=True) is None


def test_exception_that_is_not_named_is_given_up() -> None:
    """Celery's options decide alone, whatever the classifier thinks."""
    transient = Verdict(Kind.TRANSIENT, "os.econnreset", "network", "")
    policy = options(autoretry_for=(Timeout,))
    assert decide(policy, ConnectionResetError(), verdict=transient) == GiveUp(
        Reason.PERMANENT, "no rule asks for a retry"
    )


def test_autoretry_for_is_retried_whatever_the_classifier_thinks() -> None:
    """A verdict of permanent does not overrule autoretry_for, nor does its lower limit."""
    permanent = Verdict(Kind.PERMANENT, "python.bug", "code", "", max_retries=0)
    decision = decide(options(autoretry_for=(ValueError,)), ValueError(), verdict=permanent)
    assert decision == RetryLater(180, True, "Celery option autoretry_for")


def test_rate_limits_count_as_every_retry_does_in_celery() -> None:
    """max_retries is the number of retries, whatever they were for."""
    limited = Verdict(Kind.RATE_LIMITED, "http.status.429", "http", "")
    policy = options(autoretry_for=(Timeout,), max_retries=2)
    assert decide(policy, verdict=limited, retries=1) == RetryLater(
        180, True, "Celery option autoretry_for"
    )
    assert isinstance(decide(policy, verdict=limited, retries=2), GiveUp)


def test_dont_autoretry_for_wins() -> None:
    """As the ``except`` that Celery puts first."""
    policy = options(autoretry_for=(Timeout,), dont_autoretry_for=(ReadTimeout,))
    assert isinstance(decide(policy, Timeout()), RetryLater)
    assert decide(policy, ReadTimeout()) == GiveUp(Reason.PERMANENT, "no rule asks for a retry")


def test_expected_exception_that_is_not_retried_leaves_no_dead_letter() -> None:
    """``throws`` is FAILURE without a letter, but autoretry_for comes first."""
    expected = Verdict(Kind.EXPECTED, "throws", "expected", "")
    policy = options(autoretry_for=(Timeout,), dont_autoretry_for=(ReadTimeout,))
    assert decide(policy, ReadTimeout(), verdict=expected) == Drop("expected", "classifier: throws")
    assert isinstance(decide(policy, Timeout(), verdict=expected), RetryLater)


def test_retry_says_who_asked_for_it() -> None:
    """The person who reads the decision wrote the option."""
    decision = decide(options(autoretry_for=(Timeout,)))
    assert decision.rule == "Celery option autoretry_for"


def test_retry_without_backoff_waits_for_the_default_delay_on_the_dot() -> None:
    """retry_jitter is for retry_backoff alone, as in Celery."""
    assert delays(options(autoretry_for=(Timeout,), retry_jitter=True), 3) == [180, 180, 180]
    assert delays(options(autoretry_for=(Timeout,), default_retry_delay=0), 3) == [0, 0, 0]
    assert delays(options(autoretry_for=(Timeout,), default_retry_delay=3600), 1) == [3600]
    assert delays(options(autoretry_for=(Timeout,), default_retry_delay=None), 1) == [0]


def test_countdown_in_retry_kwargs_is_the_delay_unless_there_is_a_backoff() -> None:
    """Celery's backoff overwrites the countdown."""
    named = {"autoretry_for": (Timeout,), "retry_kwargs": {"countdown": 7}}
    assert delays(options(**named), 2) == [7, 7]
    assert delays(options(**named, retry_backoff=2, retry_jitter=False), 2) == [2, 4]


@pytest.mark.parametrize("factor", [-1, -0.5])
def test_backoff_below_zero_is_one_second_as_in_celery(factor: float) -> None:
    named = options(autoretry_for=(Timeout,), retry_backoff=factor, retry_jitter=False)
    assert delays(named, 3) == [1, 2, 4]


@pytest.mark.parametrize("factor", [True, 1, 2, 3, 10, 700])
@pytest.mark.parametrize("longest", [600, 30, 0])
def test_whole_backoff_gives_celerys_own_numbers(factor: int, longest: int) -> None:
    """Compared with Celery's function, retry by retry."""
    policy = options(
        autoretry_for=(Timeout,),
        max_retries=None,
        retry_backoff=factor,
        retry_backoff_max=longest,
        retry_jitter=False,
    )
    expected = [get_exponential_backoff_interval(int(factor), n, longest) for n in range(14)]
    assert delays(policy, 14) == expected


@given(st.floats(0.01, 1000), st.integers(0, 2000), st.integers(0, 10_000), st.integers(0, 99))
def test_jitter_stays_within_celerys_ceiling(
    factor: float, retries: int, longest: int, seed: int
) -> None:
    """retry_jitter draws from 0 to factor * 2**retries, at most retry_backoff_max."""
    policy = options(
        autoretry_for=(Timeout,),
        max_retries=None,
        retry_backoff=factor,
        retry_backoff_max=longest,
    )
    (delay,) = [decide(policy, attempt=retries + 1, retries=retries)]
    assert isinstance(delay, RetryLater)
    assert 0 <= delay.delay <= min(factor * 2 ** min(retries, 64), longest) * (1 + 1e-12)


def test_fractions_are_honoured() -> None:
    """On purpose: Celery makes 1 s of 0.25 s."""
    policy = options(autoretry_for=(Timeout,), retry_backoff=0.25, retry_jitter=False)
    assert delays(policy, 3) == [0.25, 0.5, 1]


@pytest.mark.parametrize("no_backoff", [False, 0, 0.0])
def test_retry_backoff_false_or_zero_is_the_default_delay(no_backoff: object) -> None:
    """Celery says it as False or 0."""
    assert delays(options(autoretry_for=(Timeout,), retry_backoff=no_backoff), 1) == [180]


def test_max_retries_is_the_number_of_retries() -> None:
    """Three retries are four attempts."""
    policy = options(autoretry_for=(Timeout,), max_retries=3)
    assert isinstance(decide(policy, retries=2), RetryLater)
    assert decide(policy, retries=3) == GiveUp(Reason.EXHAUSTED, "Celery option autoretry_for")


def test_max_retries_zero_is_never_and_none_is_no_limit() -> None:
    """0 is a number and None is not 0."""
    assert isinstance(decide(options(autoretry_for=(Timeout,), max_retries=0)), GiveUp)
    endless = options(autoretry_for=(Timeout,), max_retries=None)
    assert isinstance(decide(endless, retries=10**6, age=1e9), RetryLater)


def test_max_retries_in_retry_kwargs_wins_unless_it_is_none() -> None:
    """There, None is Celery's "use the default"."""
    policy = options(autoretry_for=(Timeout,), max_retries=9, retry_kwargs={"max_retries": 1})
    assert isinstance(decide(policy, retries=1), GiveUp)
    policy = options(autoretry_for=(Timeout,), retry_kwargs={"max_retries": 0})
    assert isinstance(decide(policy), GiveUp)
    policy = options(autoretry_for=(Timeout,), max_retries=1, retry_kwargs={"max_retries": None})
    assert isinstance(decide(policy, retries=1), GiveUp)


def test_celery_options_have_no_deadline() -> None:
    """max_elapsed is for policies and the classifier."""
    policy = options(autoretry_for=(Timeout,))
    assert isinstance(decide(policy, age=10 * 86400.0), RetryLater)


def test_servers_delay_is_a_floor_here_too() -> None:
    """429 waits as long as Retry-After says, and no shorter than the task says."""
    asked = Verdict(Kind.RATE_LIMITED, "http.status.429", "http", "", retry_after=1000.0)
    named = {"autoretry_for": (Timeout,)}
    for given_options in (named, {**named, "retry_backoff": True}):
        decision = decide(options(**given_options), verdict=asked)
        assert isinstance(decision, RetryLater)
        assert 1000 <= decision.delay <= 1180
    soon = Verdict(Kind.TRANSIENT, "http.status.503", "http", "", retry_after=1.0)
    decision = decide(options(**named), verdict=soon)
    assert isinstance(decision, RetryLater)
    assert decision.delay >= 180


def test_task_can_still_say_it_itself() -> None:
    """Our own exceptions mean the same under Celery's options."""
    policy = options(autoretry_for=(Timeout,), max_retries=3)
    transient = Verdict(Kind.TRANSIENT, "protocol.TransientError", "own", "")
    permanent = Verdict(Kind.PERMANENT, "protocol.PermanentError", "own", "")
    assert isinstance(decide(policy, TransientError(), verdict=transient), RetryLater)
    assert decide(policy, Snooze(60)) == RetryLater(60, False, "raised by the task: Snooze")
    everything = options(autoretry_for=(Exception,))
    assert isinstance(decide(everything, PermanentError(), verdict=permanent), GiveUp)


def test_options_of_the_publish_are_left_to_others() -> None:
    """retry_kwargs may hold all that Task.retry takes."""
    held = {"queue": "slow", "priority": 3, "eta": None, "throw": True, "args": (), "headers": {}}
    assert options(autoretry_for=(Timeout,), retry_kwargs=held) is not None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"autoretry_for": ("Timeout",)}, "autoretry_for takes exception classes, got 'Timeout'"),
        ({"autoretry_for": "Timeout"}, "autoretry_for takes exception classes, got 'Timeout'"),
        ({"autoretry_for": Timeout}, "autoretry_for takes exception classes in a tuple, got Time"),
        ({"autoretry_for": 3}, "autoretry_for takes exception classes, got 3"),
        ({"autoretry_for": (Timeout(),)}, r"autoretry_for takes exception classes, got Timeout\("),
        ({"dont_autoretry_for": (int,)}, "dont_autoretry_for takes exception classes, got <class"),
        ({"autoretry_for": (SystemExit,)}, "got SystemExit, which is control flow"),
        ({"autoretry_for": (Reject,)}, "got Reject, which is control flow and never retried"),
        ({"autoretry_for": (Ignore,)}, "got Ignore, which is control flow"),
        ({"autoretry_for": (Retry,)}, "got Retry, which is control flow"),
        ({"max_retries": "3"}, "max_retries takes a whole number, 0 for never or None"),
        ({"max_retries": True}, "max_retries takes a whole number, .* got True"),
        ({"max_retries": 1.5}, "max_retries takes a whole number"),
        ({"max_retries": -1}, "max_retries takes a whole number, .* got -1"),
        ({"retry_backoff": "yes"}, "retry_backoff takes True, False or a number of seconds"),
        ({"retry_backoff": None}, "retry_backoff takes True, False or a number"),
        ({"retry_backoff": float("nan")}, "retry_backoff must be finite"),
        ({"retry_backoff_max": "600"}, "retry_backoff_max must be a number, got '600'"),
        ({"retry_backoff_max": True}, "retry_backoff_max must be a number, got True"),
        ({"retry_jitter": 0.2}, "retry_jitter takes True or False, got 0.2; a failure_policy"),
        ({"retry_jitter": "full"}, "retry_jitter takes True or False, got 'full'"),
        ({"default_retry_delay": "180"}, "default_retry_delay must be a number, got '180'"),
        ({"default_retry_delay": float("inf")}, "default_retry_delay must be finite"),
        ({"retry_kwargs": [("countdown", 3)]}, "retry_kwargs takes a dict"),
        ({"retry_kwargs": {"countdwn": 3}}, "got 'countdwn'; did you mean 'countdown'"),
        ({"retry_kwargs": {3: 3}}, "retry_kwargs takes what Task.retry takes, got 3"),
        ({"retry_kwargs": {"countdown": -3}}, "countdown in retry_kwargs must be finite"),
        ({"retry_kwargs": {"max_retries": "3"}}, "max_retries in retry_kwargs takes a whole"),
    ],
)
def test_wrong_option_is_refused_with_the_tasks_name(given: dict[str, Any], text: str) -> None:
    """Whether or not the task asks for a retry at all."""
    with pytest.raises((TypeError, ValueError), match=f"^shop.charge: .*{text}"):
        options(**given)
    if "autoretry_for" not in given:
        with pytest.raises((TypeError, ValueError), match=text):
            options(autoretry_for=(Timeout,), **given)


def test_celerys_workaround_for_rejects_is_not_refused() -> None:
    """``dont_autoretry_for=(Reject,)`` is what one has to write for stock Celery."""
    assert options(autoretry_for=(Exception,), dont_autoretry_for=[Reject]) is not None
