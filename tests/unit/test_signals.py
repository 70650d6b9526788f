"""What a producer that loads ``install`` sends."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.signals import before_task_publish

from celery_resilience import install


def sent(**options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headers and properties of a task that is sent with *options*."""
    app, seen = Celery("producer", broker="memory://", set_as_current=False), []
    install(app)

    def look(headers: Any = None, properties: Any = None, **kwargs: Any) -> None:
        seen.append((dict(headers), dict(properties)))

    before_task_publish.connect(look)
    try:
        app.send_task("t", **options)
    finally:
        before_task_publish.disconnect(look)
        app.close()
    return seen[0]


def test_the_broker_has_no_clock_of_its_own_for_a_task_that_expires() -> None:
    """RabbitMQ would drop it with no worker there to see it; the worker obeys ``expires``."""
    headers, properties = sent(expires=60)
    assert headers["expires"]
    assert "expiration" not in properties


def test_a_time_to_live_that_the_sender_asks_for_stays() -> None:
    assert sent(expiration=60)[1]["expiration"] == 60
