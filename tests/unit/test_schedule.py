"""The figures of a schedule agree with what a simulation of it does."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_resilience.policy.backoff import Backoff
from celery_resilience.policy.default import UNSTATED
from celery_resilience.policy.policy import DEFAULT, Policy, on
from celery_resilience.policy.schedule import Horizon, peak_rate, schedule


def simulated_peaks(backoff: Backoff, retries: int, tasks: int) -> list[float]:
    """The fullest second of each retry, counted out; the seed is fixed."""
    random = Random(42)
    times = [0.0] * tasks
    peaks: list[float] = []
    for retry in range(1, retries + 1):
        times = sorted(time + backoff.delay(retry, random) for time in times)
        first, fullest = 0, 0
        for last, time in enumerate(times):
            while time - times[first] > 1:
                first += 1
            fullest = max(fullest, last - first + 1)
        peaks.append(fullest)
    return peaks


@pytest.mark.parametrize(
    "backoff",
    [
        Backoff(),
        Backoff(backoff=0.3),
        Backoff(backoff=5, backoff_max=8),
        Backoff(shape="linear"),
        Backoff(shape="fixed", backoff=3),
        Backoff(backoff=10, jitter=0.2),
        Backoff(backoff=0.5, factor=1.5, jitter=0.3, backoff_max=4),
        Backoff(jitter="none"),
    ],
    ids=repr,
)
def test_peak_is_what_a_simulation_counts(backoff: Backoff) -> None:
    """Six retries of 20,000 tasks, counted one by one."""
    computed = peak_rate(backoff, 20_000, 6)
    for expected, counted in zip(computed, simulated_peaks(backoff, 6, 20_000), strict=True):
        # The fullest of many seconds is by chance a little fuller than the expected one.
        assert expected - 2 * expected**0.5 <= counted <= expected + 5 * expected**0.5


def test_share_of_two_waits_is_the_textbooks_triangle() -> None:
    """U(0, 2) + U(0, 2) has 7/16 of its mass in the second around its middle."""
    assert peak_rate(Backoff(2, shape="fixed"), 1600, 2) == pytest.approx((800, 700))


def test_peak_without_jitter_is_everyone_at_once() -> None:
    """N tasks in the same second, at every retry."""
    assert peak_rate(Policy(jitter="none"), 5000) == (5000, 5000, 5000)


def test_doubling_full_jitter_divides_the_crowd_by_the_ceiling() -> None:
    """1,000 tasks that failed at once come back at 1000, 500, 250 a second."""
    assert peak_rate(DEFAULT, 1000) == (1000, 500, 250)


@settings(max_examples=50)
@given(
    first=st.floats(0.01, 20),
    factor=st.floats(1, 3),
    shape=st.sampled_from(["exponential", "linear", "fixed"]),
    jitter=st.one_of(st.just("full"), st.floats(0.05, 1)),
    retries=st.integers(0, 12),
)
def test_peaks_lie_between_none_and_all_and_never_rise(
    first: float, factor: float, shape: str, jitter: float, retries: int
) -> None:
    """Every further random wait spreads the crowd, or at least does not gather it."""
    backoff = Backoff(first, factor, 600, shape, jitter)  # type: ignore[arg-type]
    peaks = peak_rate(backoff, 1, retries)
    assert len(peaks) == retries
    assert all(0 < peak <= 1 for peak in peaks)
    assert list(peaks) == sorted(peaks, reverse=True)


def test_great_many_retries_get_the_upper_bound() -> None:
    """No sum of 2**300 terms: the crowd is at most what it was before."""
    peaks = peak_rate(Backoff(4, shape="fixed"), 1, 300)
    assert peaks[38] > peaks[39] == peaks[40] == peaks[-1] > 0


@pytest.mark.parametrize(
    "backoff",
    [Backoff(), Backoff(10, jitter=0.2), Backoff(3, shape="linear", jitter=None)],
    ids=repr,
)
def test_percentiles_are_those_of_drawn_delays(backoff: Backoff) -> None:
    """Median, 95th percentile, mean and both ends, against 20,000 drawn delays."""
    random = Random(42)
    for wait in schedule(backoff, 4).waits:
        drawn = sorted(backoff.delay(wait.retry, random) for _ in range(20_000))
        assert drawn[10_000] == pytest.approx(wait.p50, rel=0.03)
        assert drawn[19_000] == pytest.approx(wait.p95, rel=0.03)
        assert sum(drawn) / len(drawn) == pytest.approx(wait.mean, rel=0.03)
        assert wait.shortest <= drawn[0] <= drawn[-1] <= wait.worst


def test_written_policy_survives_seven_seconds_at_most() -> None:
    """1 + 2 + 4 s at worst, half of it on average, for certain nothing."""
    default = schedule(DEFAULT)
    assert [wait.ceiling for wait in default.waits] == [1, 2, 4]
    assert [wait.worst_so_far for wait in default.waits] == [1, 3, 7]
    assert [wait.mean_so_far for wait in default.waits] == [0.5, 1.5, 3.5]
    assert default.horizon == Horizon(
        # x**3 / (6 * 1 * 2 * 4) = 0.01
        certain=0, nearly_certain=pytest.approx(0.48 ** (1 / 3), rel=1e-3), expected=3.5, worst=7,
    )  # fmt: skip


def test_default_policy_survives_an_outage_of_more_than_an_hour() -> None:
    """At least 79 min in 99 of 100, which 20,000 drawn horizons confirm."""
    horizon = schedule(UNSTATED).horizon
    assert 79 * 60 <= horizon.nearly_certain < 79.1 * 60
    assert (horizon.certain, horizon.expected, horizon.worst) == (3511.5, 5439, 7366.5)
    random = Random(42)
    backoff = UNSTATED.terms().backoff
    drawn = sorted(sum(backoff.delay(n, random) for n in range(1, 21)) for _ in range(20_000))
    assert drawn[200] == pytest.approx(horizon.nearly_certain, rel=0.005)


@pytest.mark.parametrize(
    "backoff",
    [
        Backoff(),
        Backoff(5, shape="fixed"),
        Backoff(0.1, factor=9, jitter=0.3),
        Backoff(10, backoff_max=10, jitter=0.2),
        Backoff(1, shape="linear"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("retries", [1, 2, 5, 12])
def test_horizon_of_99_of_100_is_what_a_simulation_counts(backoff, retries) -> None:
    random = Random(42)
    drawn = sorted(
        sum(backoff.delay(n, random) for n in range(1, retries + 1)) for _ in range(20_000)
    )
    horizon = schedule(backoff, retries).horizon
    assert horizon.certain <= horizon.nearly_certain <= horizon.expected
    share = sum(one <= horizon.nearly_certain for one in drawn) / len(drawn)
    assert share == pytest.approx(0.01, abs=0.0025)


def test_very_many_waits_are_taken_to_be_normally_distributed() -> None:
    """No jump where the grid ends."""
    backoff = Backoff(5, shape="fixed")
    on_grid, beyond = schedule(backoff, 100).horizon, schedule(backoff, 101).horizon
    assert beyond.nearly_certain - on_grid.nearly_certain == pytest.approx(2.5, abs=0.5)


def test_horizon_ends_at_the_deadline() -> None:
    """Retries that the deadline forbids are no help."""
    policy = Policy(max_retries=20, backoff=60, shape="fixed", jitter="none", max_elapsed=300)
    assert schedule(policy).horizon == Horizon(300, 300, 300, 300)


def test_policy_without_retries_has_no_horizon() -> None:
    """0 means never."""
    assert schedule(Policy(max_retries=0)).horizon == Horizon(0, 0, 0, 0)
    assert peak_rate(Policy(max_retries=0), 10) == ()


def test_rule_has_a_schedule_of_its_own() -> None:
    """Its own numbers, and the policy's where it has none."""
    rule = on(OSError).retry(max_retries=2, backoff=2)
    fixed = on(ValueError).retry(delay=30)
    policy = Policy(rule, fixed, jitter=0.5)
    assert [(w.shortest, w.worst) for w in schedule(policy, rule=rule).waits] == [(1, 3), (2, 6)]
    assert [w.p95 for w in schedule(policy, rule=fixed).waits] == [30, 30, 30]
    assert peak_rate(policy, 7, rule=fixed) == (7, 7, 7)


def test_schedule_without_a_limit_needs_the_number_of_retries() -> None:
    """A schedule is finite."""
    with pytest.raises(ValueError, match="say how many"):
        schedule(Policy(max_retries=None))
    with pytest.raises(TypeError, match="a Backoff alone has none"):
        schedule(Backoff(), 3, rule=on(OSError).retry())
    assert len(schedule(Policy(max_retries=None), 5).waits) == 5
