"""A user's own test file, with the fixtures of Celery's pytest plugin and a real Redis."""

from __future__ import annotations

import os
from typing import Any

import pytest

from celery_resilience import install


@pytest.fixture(scope="session")
def celery_config() -> dict[str, Any]:
    return {"broker_url": os.environ["BROKER_URL"], "result_backend": os.environ["BROKER_URL"]}


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, Any]:
    return {"perform_ping_check": False, "shutdown_timeout": 20}


def test_task_recovers(celery_app, celery_worker):
    install(celery_app)

    @celery_app.task(bind=True, autoretry_for=(ConnectionError,), default_retry_delay=0)
    def flaky(self):
        if self.request.retries < 2:
            raise ConnectionError("not yet")
        return self.request.retries

    celery_worker.reload()
    assert flaky.delay().get(timeout=20) == 2
