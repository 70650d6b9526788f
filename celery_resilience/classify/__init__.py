"""What an exception says about the next attempt.

::

    verdict = classify(exception)
    verdict.kind          # transient, rate_limited, permanent or unknown
    verdict.retry_after   # the seconds that the server asked for, or None

The rules are tables, one family of exceptions each, with small readers beside them. No library is
imported: an exception is known by the root module and the name of its classes and by its
attributes. The first rule with an answer decides, in this order:

1. what the exception says of itself: our errors, ``retryable``, ``retry_after``;
2. a refused certificate anywhere in the chain;
3. the exceptions that it wraps: groups, ``orig``, ``reason``, a first argument;
4. codes in the attributes of its family;
5. an HTTP status, with the headers in which a server forbids or wants a retry;
6. the nearest class that its library's table knows;
7. ``errno``, then the nearest class of Python's own;
8. what it was raised from.
"""

from __future__ import annotations

from celery_resilience.classify.by_name import classify_name, exception_named
from celery_resilience.classify.catalogue import Row, table
from celery_resilience.classify.classifier import classify, is_control_flow
from celery_resilience.classify.finding import CATEGORIES

__all__ = [
    "CATEGORIES",
    "Row",
    "classify",
    "classify_name",
    "exception_named",
    "is_control_flow",
    "table",
]
