"""What a policy comes to in seconds: its waits, how long an outage it survives, and the crowd
that it sends back to a service that has just recovered.

Every delay is uniform between two bounds (`Backoff.bounds`), so all of it is computed and nothing
simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from math import factorial, inf, prod, sqrt
from statistics import NormalDist

from celery_resilience.policy.backoff import Backoff
from celery_resilience.policy.policy import Policy, Terms
from celery_resilience.policy.rules import Rule

__all__ = ["Horizon", "Schedule", "Wait", "peak_rate", "schedule"]

# More than this and `_share_in_best_second` answers with its upper bound.
_MOST_TERMS = 512
_MOST_RETRIES = 40
# Sums of more waits than this are taken to be normally distributed, others are computed on a grid.
_MOST_CONVOLVED = 100
_GRID = 2000


@dataclass(frozen=True)
class Wait:
    """The wait before one retry, in seconds."""

    #: Which retry, from 1.
    retry: int
    ceiling: float
    shortest: float
    p50: float
    p95: float
    worst: float
    mean: float
    #: From the first failure to this retry, if every wait turns out the longest.
    worst_so_far: float
    #: The same with the mean of every wait.
    mean_so_far: float


@dataclass(frozen=True)
class Horizon:
    """How long an outage a policy survives: the sum of its delays, at most ``max_elapsed``."""

    #: If every wait turns out the shortest: an outage of this length is survived for certain.
    certain: float
    #: What 99 of 100 tasks survive: the 1 % quantile of the sum.
    nearly_certain: float
    expected: float
    #: If every wait turns out the longest: no outage beyond this length is survived.
    worst: float


@dataclass(frozen=True)
class Schedule:
    """The waits before the retries of one task, in order."""

    waits: tuple[Wait, ...]
    #: The deadline that they are under, None for none.
    max_elapsed: float | None = None

    @property
    def horizon(self) -> Horizon:
        """How long an outage is survived; bodies are taken to fail at once."""
        most = inf if self.max_elapsed is None else self.max_elapsed
        certain = sum(wait.shortest for wait in self.waits)
        widths = [wait.worst - wait.shortest for wait in self.waits]
        return Horizon(
            certain=min(most, certain),
            nearly_certain=min(most, certain + _quantile(widths, 0.01)),
            expected=min(most, sum(wait.mean for wait in self.waits)),
            worst=min(most, sum(wait.worst for wait in self.waits)),
        )


def _quantile(widths: Sequence[float], share: float) -> float:
    """What a sum of U(0, w) for each of *widths* stays below in this *share* of all cases.

    The distribution of the sum is built up on a grid, one uniform after the other: its value at x
    becomes its mean over the last w.
    """
    widths = sorted(width for width in widths if width > 0)
    most = sum(widths)
    if len(widths) > _MOST_CONVOLVED:  # so many are as good as normally distributed
        deviation = sqrt(sum(width * width for width in widths) / 12)
        return max(0.0, NormalDist(most / 2, deviation).inv_cdf(share))
    if not 0 < most < inf:
        return 0.0
    step = most / _GRID
    below = [1.0] * (_GRID + 1)  # the share of sums that are at most so many steps
    for width in widths:
        area = [0.0, *accumulate((a + b) / 2 for a, b in pairwise(below))]
        span = width / step
        below = [min(1.0, (area[at] - _between(area, at - span)) / span) for at in range(_GRID + 1)]
    last = next(at for at, value in enumerate(below) if value >= share)
    if last == 0:
        return 0.0
    before, after = below[last - 1], below[last]
    return (last - 1 + (share - before) / (after - before)) * step


def _between(values: Sequence[float], at: float) -> float:
    """The value *at* a place between two of the grid's; 0 before its beginning."""
    if at <= 0:
        return 0.0
    first = int(at)
    rest = at - first
    return values[first] + (rest * (values[first + 1] - values[first]) if rest else 0.0)


def schedule(
    policy: Policy | Backoff, retries: int | None = None, *, rule: Rule | None = None
) -> Schedule:
    """The waits of *policy*, or of one *rule* of it, for as many *retries* as it allows.

    A server's ``Retry-After`` comes on top of this. A ``delay=`` function answers only for an
    exception it is given, so here the backoff, which takes its place when it fails, speaks for it.
    """
    terms = _terms(policy, rule)
    waits: list[Wait] = []
    worst_so_far = mean_so_far = 0.0
    for retry in range(1, _retries(terms, retries) + 1):
        shortest, longest = _bounds(terms, retry)
        mean = (shortest + longest) / 2
        worst_so_far += longest
        mean_so_far += mean
        waits.append(
            Wait(
                retry=retry,
                ceiling=_ceiling(terms, retry),
                shortest=shortest,
                p50=mean,
                p95=shortest + 0.95 * (longest - shortest),
                worst=longest,
                mean=mean,
                worst_so_far=worst_so_far,
                mean_so_far=mean_so_far,
            )
        )
    return Schedule(tuple(waits), terms.max_elapsed)


def peak_rate(
    policy: Policy | Backoff,
    tasks: int,
    retries: int | None = None,
    *,
    rule: Rule | None = None,
) -> tuple[float, ...]:
    """For each retry, how many of *tasks* that failed at once come back in its busiest second.

    An expected number, for bodies that go on failing at once. Retry k comes after the sum of k
    independent waits. Its fixed part moves the crowd but does not spread it; without jitter there
    is no other, and all *tasks* come at once. The random part is a sum of uniforms of the widths
    w1 .. wk, whose density is symmetric and falls off to both sides, so that the busiest second
    is the one around its middle m::

        peak(k) = tasks * (F(m + 1/2) - F(m - 1/2))
        F(x)    = 1 / (k! * w1 * .. * wk) * sum over subsets S of (-1)**|S| * max(0, x - w(S))**k

    For full jitter that doubles from 1 s this is simply tasks / ceiling(k). Where the sum would
    have too many terms (dozens of retries), an upper bound is given in its place: the smaller of
    peak(k - 1) and tasks / max(w1 .. wk).
    """
    terms = _terms(policy, rule)
    widths: list[float] = []
    rates: list[float] = []
    for retry in range(1, _retries(terms, retries) + 1):
        shortest, longest = _bounds(terms, retry)
        if longest > shortest:
            widths.append(longest - shortest)
        rate = tasks * _share_in_best_second(widths)
        rates.append(min([rate, *rates[-1:]]))  # no wait gathers a crowd again
    return tuple(rates)


def _terms(policy: Policy | Backoff, rule: Rule | None) -> Terms:
    if isinstance(policy, Policy):
        return policy.terms(rule)
    if rule is not None:
        raise TypeError("rule takes a rule of a policy: a Backoff alone has none")
    return Terms(max_retries=None, max_elapsed=None, backoff=policy)


def _retries(terms: Terms, retries: int | None) -> int:
    if retries is None:
        retries = terms.max_retries
    if retries is None:
        raise ValueError("there is no limit on the retries: say how many are wanted")
    return retries


def _bounds(terms: Terms, retry: int) -> tuple[float, float]:
    if isinstance(terms.delay, float):
        return terms.delay, terms.delay
    return terms.backoff.bounds(retry)


def _ceiling(terms: Terms, retry: int) -> float:
    return terms.delay if isinstance(terms.delay, float) else terms.backoff.ceiling(retry)


def _share_in_best_second(widths: Sequence[float]) -> float:
    """The largest probability that a sum of uniforms of these *widths* has for any one second."""
    if not widths:
        return 1.0
    widest = max(widths)
    if 2 * widest - sum(widths) >= 1:
        return 1 / widest  # wider than all others together: the density is flat in the middle
    bound = min(1.0, 1 / widest)
    # Exact fractions: alternating sums of high powers leave nothing of a float.
    exact = [Fraction(width) for width in widths]
    subsets = _signed_subset_sums(exact)
    if subsets is None:
        return bound
    middle, half = sum(exact, Fraction(0)) / 2, Fraction(1, 2)
    inside = _cumulated(middle + half, len(exact), subsets) - _cumulated(
        middle - half, len(exact), subsets
    )
    return float(inside / (factorial(len(exact)) * prod(exact)))


def _signed_subset_sums(widths: Sequence[Fraction]) -> dict[Fraction, int] | None:
    """Sum of each subset -> number of even less number of odd subsets; None if too many."""
    if len(widths) > _MOST_RETRIES:
        return None
    sums = {Fraction(0): 1}
    for width in widths:
        longer = dict(sums)
        for total, count in sums.items():
            longer[total + width] = longer.get(total + width, 0) - count
        sums = {total: count for total, count in longer.items() if count}
        if len(sums) > _MOST_TERMS:
            return None
    return sums


def _cumulated(x: Fraction, power: int, subsets: dict[Fraction, int]) -> Fraction:
    return sum(
        (count * (x - total) ** power for total, count in subsets.items() if total < x),
        Fraction(0),
    )
