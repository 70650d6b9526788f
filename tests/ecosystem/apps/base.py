"""What every app of these scenarios has: three tasks, and ``install``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

from celery_resilience import install


def note(line: str) -> None:
    """Write *line* down where the test reads it."""
    with Path(os.environ["RECORD"]).open("a") as record:
        record.write(f"{line}\n")


def configure(app: Any) -> None:
    """Let *app* connect to the test's broker, and lose nothing."""
    app.conf.update(
        broker_url=os.environ["BROKER_URL"],
        result_backend=os.environ["BACKEND_URL"],
        task_default_queue="eco",
        broker_connection_retry_on_startup=True,
    )
    install(app)


def add_tasks(app: Any) -> None:
    """``eco.fine`` succeeds, ``eco.flaky`` fails as often as it is told, ``eco.dead`` always."""

    @app.task(name="eco.fine")
    def fine(value: Any) -> Any:
        note(f"fine {value}")
        return value

    @app.task(
        bind=True, name="eco.flaky", autoretry_for=(ConnectionError,), max_retries=3,
        default_retry_delay=0,
    )  # fmt: skip
    def flaky(self: Any, failures: int) -> str:
        note(f"flaky {self.request.retries}")
        if self.request.retries < failures:
            raise ConnectionError(f"attempt {self.request.retries}")
        return "recovered"

    @app.task(name="eco.dead")
    def dead() -> None:
        note("dead")
        raise ValueError("never")


def make(name: str, **options: Any) -> Any:
    """An app with all of it."""
    app = Celery(name, **options)
    configure(app)
    add_tasks(app)
    return app
