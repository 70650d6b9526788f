"""The same jobs under celery beat: ``celery -A examples.cron.tasks worker --beat``.

Two lines wrap a job: the policy, and ``app.task(...)(job)``. The job stays as it is.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, group
from celery.result import GroupResult

from celery_resilience import Policy, Snooze, TransientError, install
from examples.cron import jobs

__all__ = ["EXPONENTIAL", "FIXED", "LINEAR", "app"]

#: Where the services are, and how often the jobs run, in seconds.
SERVICES = os.environ.get("SERVICES_URL", "http://127.0.0.1:8000")
EVERY = float(os.environ.get("CRON_EVERY", "2"))

SOURCES = [f"{SERVICES}/trends/{name}" for name in ("news", "forum", "video")]
#: Trends of fewer sources than this say nothing.
ENOUGH = 2

# Three retries each, a second to begin with: 1, 2, 4 s; 1, 2, 3 s; 1, 1, 1 s.
EXPONENTIAL = Policy(max_retries=3, backoff=1, shape="exponential", jitter="none")
LINEAR = Policy(max_retries=3, backoff=1, shape="linear", jitter="none")
FIXED = Policy(max_retries=3, backoff=1, shape="fixed", jitter="none")

app = Celery("cron", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.update(
    task_default_queue="examples.cron",
    resilience_dead_letter_queue="examples.cron.dead",
    broker_connection_retry_on_startup=True,
    # A day's work in a few seconds; for cron's own times: crontab(hour=7, minute=30).
    beat_schedule={
        "prices": {
            "task": "cron.check_price",
            "schedule": EVERY,
            "args": [f"{SERVICES}/price/bicycle"],
        },
        "trends": {"task": "cron.hunt_trends", "schedule": EVERY},
        "releases": {
            "task": "cron.watch_releases",
            "schedule": EVERY,
            "args": [f"{SERVICES}/releases"],
        },
    },
)
install(app)

check_price = app.task(name="cron.check_price", failure_policy=EXPONENTIAL)(jobs.check_price)
watch_releases = app.task(name="cron.watch_releases", failure_policy=LINEAR)(jobs.watch_releases)
fetch_trends = app.task(name="cron.fetch_trends", failure_policy=FIXED)(jobs.fetch_trends)


@app.task(name="cron.hunt_trends", bind=True, failure_policy=FIXED.replace(max_retries=1))
def hunt_trends(self: Any) -> list[str]:
    """Ask all sources, each with its own retries; go on with those that have answered.

    Where too few have, the whole is tried once more. Nothing waits in here: until the last source
    has answered or given up, the task is snoozed.
    """
    # A snooze uses up no retry, so this names one hunt, and the retry is another.
    hunt = f"{self.request.id}.{self.request.retries}"
    asked = GroupResult.restore(hunt, app=app)
    if asked is None:
        asked = group(fetch_trends.s(url) for url in SOURCES).apply_async(task_id=hunt)
        asked.save()
    if not asked.ready():
        raise Snooze(1, "not all sources have answered")
    found: list[Any] = [source.result for source in asked if source.successful()]
    if len(found) < ENOUGH:
        raise TransientError(f"only {len(found)} of {len(SOURCES)} sources have answered")
    return jobs.merge_trends(found)
