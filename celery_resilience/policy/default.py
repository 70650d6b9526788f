"""What is retried where neither a policy nor Celery's own options speak.

An outage is waited out: a *transient* failure has 20 retries that take an hour and a half in all,
and at least 79 minutes in 99 of 100 tasks. A failure that no rule of the classifier knows is more
likely a bug: it has the three quick retries of any written policy, so that a person hears of it
within seconds.
"""

from __future__ import annotations

from celery_resilience.classify.verdict import Kind
from celery_resilience.policy.policy import DEFAULT, Policy
from celery_resilience.policy.terms import Terms

__all__ = ["UNSTATED", "DefaultPolicy"]


class DefaultPolicy(Policy):
    """The policy of a task that states none: its own limits are for transient failures alone.

    `replace` makes a written policy of it, whose limits are for all that its rules do not match.
    """

    def terms_for(self, kind: Kind) -> Terms:
        return self.terms() if kind is Kind.TRANSIENT else DEFAULT.terms()


#: Decides where nothing else is stated; the one place for these numbers. The proportional jitter
#: keeps the shortest horizon near the mean: full jitter would lose half of it (37 min).
UNSTATED = DefaultPolicy(max_retries=20, jitter=0.5)
