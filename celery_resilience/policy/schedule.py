"""What a policy comes to in seconds: its waits, how long an outage it survives, and the crowd
that it sends back to a service that has just recovered.

Every delay is uniform between two bounds (`Backoff.bounds`), so all of it is computed and nothing
simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf, sqrt
from statistics import NormalDist

from celery_resilience.policy.backoff import Backoff
from celery_resilience.policy.policy import Policy
from celery_resilience.policy.rules import Rule
from celery_resilience.policy.terms import Terms

__all__ = ["Horizon", "Schedule", "Wait", "peak_rate", "schedule"]

# So many waits spread a crowd; those after them are not computed any more.
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
    """What a sum of U(0, w) for each of *widths* stays below in this *share* of all cases."""
    widths = [width for width in widths if width > 0]
    most = sum(widths)
    if len(widths) > _MOST_CONVOLVED:  # so many are as good as normally distributed
        deviation = sqrt(sum(width * width for width in widths) / 12)
        return max(0.0, NormalDist(most / 2, deviation).inv_cdf(share))
    if not 0 < most < inf:
        return 0.0
    below, step = _distribution(widths)
    last = next(at for at, value in enumerate(below) if value >= share)
    if last == 0:
        return 0.0
    before, after = below[last - 1], below[last]
    return (last - 1 + (share - before) / (after - before)) * step


def _distribution(widths: Sequence[float]) -> tuple[list[float], float]:
    """The share of sums of U(0, w) for each of *widths* that are at most 0, 1, 2 ... steps, and
    the length of a step.

    It is built up one uniform after the other: its value at x becomes its mean over the last w.
    """
    step = sum(widths) / _GRID
    below = [1.0] * (_GRID + 1)
    for width in sorted(widths):
        area = [0.0, *accumulate((a + b) / 2 for a, b in pairwise(below))]
        span = width / step
        below = [min(1.0, (area[at] - _between(area, at - span)) / span) for at in range(_GRID + 1)]
    return below, step


def _between(values: Sequence[float], at: float) -> float:
    """The value *at* a place between two of the grid's; 0 before its beginning."""
    if at <= 0:
        return 0.0
    first = min(int(at), _GRID)
    rest = at - first
    return values[first] + (rest * (values[first + 1] - values[first]) if first < _GRID else 0.0)


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
    is no other, and all *tasks* come at once. The random part is a sum of uniforms, whose density
    is symmetric and falls off to both sides: the busiest second is the one around its middle. For
    full jitter that doubles from 1 s this is simply tasks / ceiling(k). What 40 random waits come
    to stands for more of them, as an upper bound.
    """
    terms = _terms(policy, rule)
    widths: list[float] = []
    rates: list[float] = []
    share = 1.0
    for retry in range(1, _retries(terms, retries) + 1):
        shortest, longest = _bounds(terms, retry)
        if longest > shortest and len(widths) < _MOST_RETRIES:
            widths.append(longest - shortest)
            share = min(share, _share_in_best_second(widths))  # no wait gathers a crowd again
        rates.append(tasks * share)
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
    widest, most = max(widths), sum(widths)
    if 2 * widest - most >= 1:
        return 1 / widest  # wider than all others together: the density is flat in the middle
    below, step = _distribution(widths)
    first, last = max(0.0, most - 1) / 2 / step, min(most, (most + 1) / 2) / step
    return min(1.0, _between(below, last) - _between(below, first))
