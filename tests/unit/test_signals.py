"""What a producer that loads ``install`` sends."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish

from celery_resilience import install
from celery_resilience.settings import Settings
from celery_resilience.worker.expiration import warn_of_the_brokers_clock


def sent(
    keep: bool = True, protocol: int = 2, **options: Any
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Headers, properties and body of a task that is sent with *options*."""
    app, seen = Celery("producer", broker="memory://", set_as_current=False), []
    install(app)
    app.conf.update(resilience_dead_letter_expired=keep, task_protocol=protocol)

    def look(headers: Any = None, properties: Any = None, body: Any = None, **kwargs: Any) -> None:
        seen.append((dict(headers), dict(properties), body))

    before_task_publish.connect(look)
    try:
        app.send_task("t", **options)
    finally:
        before_task_publish.disconnect(look)
        app.close()
    return seen[0]


@pytest.mark.parametrize("protocol", [1, 2])
def test_sender_that_keeps_expired_tasks_gives_the_broker_no_clock(protocol: int) -> None:
    """RabbitMQ would drop it with no worker there to see it; the worker obeys ``expires``."""
    headers, properties, body = sent(expires=60, protocol=protocol)
    assert headers["expires"] if protocol == 2 else body["expires"]
    assert "expiration" not in properties


def test_sender_that_drops_expired_tasks_lets_the_broker_do_it() -> None:
    """With no worker they would lie there for ever."""
    assert sent(keep=False, expires=60)[1]["expiration"] == 60


def test_time_to_live_that_the_sender_asks_for_stays() -> None:
    assert sent(expiration=60)[1]["expiration"] == 60


def test_each_app_of_a_process_has_its_own_say() -> None:
    """One that keeps expired tasks does not speak for the others."""
    sent(keep=True, expires=60)
    assert sent(keep=False, expires=60)[1]["expiration"] == 60


def test_worker_that_keeps_what_its_app_lets_expire_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The flag alone does not reach those who send."""
    app = Celery("consumer", broker="memory://", set_as_current=False)
    warn_of_the_brokers_clock(app, Settings.of(app, dead_letter_expired=True))
    assert "resilience_dead_letter_expired = True" in caplog.text
    caplog.clear()
    app.conf.resilience_dead_letter_expired = True
    warn_of_the_brokers_clock(app, Settings.of(app))
    assert caplog.text == ""
