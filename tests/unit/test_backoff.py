"""Ceilings grow and stop at the cap; jitter spreads what lies under them."""

from __future__ import annotations

import pickle
from math import inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience.policy.backoff import Backoff

seconds = st.floats(0, 1e6)
proportions = st.floats(0.001, 1.0)
seeds = st.integers(0, 2**32)
attempts = st.one_of(st.integers(1, 50), st.just(1025), st.just(10**6), st.just(10**400))


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    first, second = sorted([draw(seconds), draw(seconds)])
    return Backoff(
        backoff=first,
        factor=draw(st.floats(1, 100)),
        backoff_max=second,
        shape=draw(st.sampled_from(["exponential", "linear", "fixed"])),
        jitter=draw(st.one_of(st.sampled_from(["full", "none"]), proportions)),
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("exponential", [1, 2, 4, 8]), ("linear", [1, 2, 3, 4]), ("fixed", [1, 1, 1, 1])],
)
def test_shapes_of_the_auto_retry_system_come_out_to_the_second(
    shape: str, expected: list[float]
) -> None:
    """Table A2: base delay 1 s, exponential, linear and fixed."""
    backoff = Backoff(backoff=1, shape=shape, jitter="none")  # type: ignore[arg-type]
    assert [backoff.delay(attempt, Random(0)) for attempt in (1, 2, 3, 4)] == expected


def test_delays_double_up_to_the_maximum_of_the_api_timeout_plan() -> None:
    """Table B2: min(base * 2**attempt, max) with base 1 s, max 30 s and attempts from 0."""
    backoff = Backoff(backoff=1, factor=2, backoff_max=30, jitter=None)
    delays = [backoff.delay(n + 1, Random(0)) for n in range(8)]
    assert delays == [min(1 * 2**n, 30) for n in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("attempt", "least", "most"), [(1, 8, 12), (2, 16, 24), (3, 32, 48), (4, 64, 96)]
)
def test_proportion_spreads_every_interval_the_first_included(
    attempt: int, least: float, most: float
) -> None:
    """Table D2: initial 10 s, multiplier 2, randomization factor 0.2."""
    backoff = Backoff(backoff=10, factor=2, jitter=0.2)
    assert backoff.bounds(attempt) == pytest.approx((least, most))
    drawn = [backoff.delay(attempt, Random(seed)) for seed in range(500)]
    assert least <= min(drawn) < least * 1.02
    assert most * 0.98 < max(drawn) <= most


@pytest.mark.parametrize("n", range(12))
def test_full_jitter_is_anything_up_to_the_plain_backoff(n: int) -> None:
    """Table D3: plain min(cap, base * 2**n), full jitter uniform(0, that)."""
    plain = Backoff(backoff=0.5, backoff_max=100, jitter="none")
    full = Backoff(backoff=0.5, backoff_max=100, jitter="full")
    top = min(100, 0.5 * 2**n)
    assert plain.delay(n + 1, Random(0)) == top
    drawn = [full.delay(n + 1, Random(seed)) for seed in range(500)]
    assert 0 <= min(drawn) < top * 0.02
    assert top * 0.98 < max(drawn) <= top
    assert sum(drawn) / len(drawn) == pytest.approx(top / 2, rel=0.1)


def calls_until_all_have_written(clients: int, jitter: str) -> int:
    """Clients read, write a moment later, and start over if another wrote in between."""
    random = Random(7)
    backoff = Backoff(backoff=1, backoff_max=64, jitter=jitter)  # type: ignore[arg-type]
    starts = [(0.0, 1)] * clients
    calls, last_write = 0, -inf
    while starts:
        starts.sort()
        (start, attempt), *starts = starts
        calls += 1
        if start <= last_write:  # somebody wrote after this one had read
            starts.append((start + backoff.delay(attempt, random), attempt + 1))
        else:
            last_write = start + 0.01
    return calls


def test_contending_clients_cost_a_square_without_jitter_and_far_less_with_it() -> None:
    """Table D3: N clients that retry together cost N**2 calls."""
    clients = 60
    assert calls_until_all_have_written(clients, "none") == clients * (clients + 1) / 2
    assert calls_until_all_have_written(clients, "full") < clients * 5


@given(backoffs(), attempts, seeds)
def test_delay_is_never_negative_and_never_above_the_cap(
    backoff: Backoff, attempt: int, seed: int
) -> None:
    """Whatever the numbers and however many attempts there were."""
    assert 0 <= backoff.delay(attempt, Random(seed)) <= backoff.backoff_max


@given(backoffs(), st.integers(1, 3000))
def test_ceilings_never_shrink(backoff: Backoff, attempt: int) -> None:
    """A later attempt waits under a ceiling at least as high."""
    assert backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1)


@given(backoffs(), attempts, seconds, seeds)
def test_retries_wait_until_the_server_said(
    backoff: Backoff, attempt: int, retry_after: float, seed: int
) -> None:
    """The cap does not shorten the server's delay, and at most the ceiling comes on top."""
    delay = backoff.delay(attempt, Random(seed), retry_after)
    _, longest = backoff.bounds(attempt)
    assert retry_after <= delay <= max(retry_after + backoff.ceiling(attempt), longest)


def test_retry_after_is_spread_even_without_jitter() -> None:
    """A thousand tasks that are told 30 s do not all come at 30 s."""
    backoff = Backoff(backoff=10, jitter="none")
    delays = {backoff.delay(1, Random(seed), retry_after=30) for seed in range(100)}
    assert len(delays) == 100
    assert 30 <= min(delays) < max(delays) <= 40


def test_servers_delay_does_not_shorten_a_longer_backoff() -> None:
    """Who states a fixed wait of 180 s is not sent back after 31 s."""
    backoff = Backoff(backoff=180, shape="fixed", jitter="none")
    assert all(backoff.delay(1, Random(seed), retry_after=1) >= 180 for seed in range(50))


def test_at_the_cap_a_proportion_still_spreads() -> None:
    """With 20 % at a cap of 600 s nobody is sent to 600 s sharp."""
    backoff = Backoff(backoff=600, backoff_max=600, jitter=0.2)
    delays = [backoff.delay(1, Random(seed)) for seed in range(1000)]
    assert sum(delay == 600 for delay in delays) == 0
    assert 480 <= min(delays) < max(delays) <= 600


@pytest.mark.parametrize("attempt", [1024, 1025, 10**6, 10**400])
def test_attempts_of_any_number_do_not_overflow(attempt: int) -> None:
    """2.0 ** 1024 is more than a float holds."""
    assert Backoff().ceiling(attempt) == 600
    assert Backoff(shape="linear").ceiling(attempt) == 600


@pytest.mark.parametrize("shape", ["exponential", "linear", "fixed"])
def test_backoff_of_zero_never_waits(shape: str) -> None:
    """0 means 0, after a million attempts too."""
    backoff = Backoff(backoff=0, shape=shape)  # type: ignore[arg-type]
    assert [backoff.delay(n, Random(1)) for n in (1, 2, 10**6)] == [0, 0, 0]


def test_function_can_be_the_shape() -> None:
    """C7, D1: an interval function of the attempt, still under the cap."""
    backoff = Backoff(shape=lambda attempt: attempt**3, backoff_max=50, jitter="none")
    assert [backoff.ceiling(n) for n in (1, 2, 3, 4)] == [1, 8, 27, 50]


@pytest.mark.parametrize("returned", [-1, nan, inf, True, "3", None])
def test_shape_function_must_return_seconds(returned: object) -> None:
    """What is no number of seconds is not taken for one."""
    with pytest.raises((TypeError, ValueError), match="the shape function returned"):
        Backoff(shape=lambda attempt: returned).ceiling(1)  # type: ignore[arg-type,return-value]


def test_shape_function_gives_way_to_the_exponential_shape_without_user_code() -> None:
    """The worker's parent does not call functions of the user's."""
    backoff = Backoff(backoff=700, shape=lambda attempt: 1 / 0).without_user_code()
    assert [backoff.ceiling(n) for n in (1, 2)] == [600, 600]
    plain = Backoff(3, jitter=0.5)
    assert plain.without_user_code() is plain


@pytest.mark.parametrize("name", ["backoff", "factor", "backoff_max"])
@pytest.mark.parametrize("value", [-1, nan, inf, -inf, True, "1", None, 10**400])
def test_numbers_that_cannot_be_meant_are_refused(name: str, value: object) -> None:
    """The error names the argument."""
    with pytest.raises((TypeError, ValueError), match=name):
        Backoff(**{name: value})  # type: ignore[arg-type]


def test_factor_below_one_is_refused() -> None:
    """Waits that shrink are no back-off."""
    with pytest.raises(ValueError, match=r"factor must be finite and at least 1, got 0\.5"):
        Backoff(factor=0.5)


@pytest.mark.parametrize("jitter", [0, 0.0, -0.2, 1.1, nan, inf, True, False, "ful", [], 20])
def test_jitter_that_cannot_be_meant_is_refused(jitter: object) -> None:
    """A proportion is above 0 and up to 1."""
    with pytest.raises((TypeError, ValueError), match="jitter takes 'full', 'none' or"):
        Backoff(jitter=jitter)  # type: ignore[arg-type]


def test_misspelt_words_get_a_suggestion() -> None:
    """The way out is in the error."""
    with pytest.raises(ValueError, match="did you mean 'exponential'"):
        Backoff(shape="exponental")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'full'"):
        Backoff(jitter="ful")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shape takes"):
        Backoff(shape=2)  # type: ignore[arg-type]


def test_first_ceiling_above_the_cap_is_refused() -> None:
    """It would never apply, so it cannot be meant."""
    with pytest.raises(ValueError, match="backoff 700 is more than backoff_max 600: raise"):
        Backoff(backoff=700)


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt: int) -> None:
    """There is no wait before the first attempt."""
    with pytest.raises(ValueError, match="counted from 1"):
        Backoff().ceiling(attempt)


def test_backoff_is_a_value() -> None:
    """Equal by its numbers, hashable, and it travels to another process."""
    assert Backoff(1, jitter=None) == Backoff(1.0, jitter="none")
    assert hash(Backoff(2, jitter=1)) == hash(Backoff(2.0, jitter=1.0))
    assert pickle.loads(pickle.dumps(Backoff(3))) == Backoff(3)
