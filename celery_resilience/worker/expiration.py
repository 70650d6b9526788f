"""What producers do to the messages they send: whose clock a task that expires is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kombu.utils.imports import symbol_by_name

from celery_resilience.settings import PREFIX, Settings

__all__ = ["keep_expiring", "warn_of_the_brokers_clock"]

logger = logging.getLogger("celery_resilience")


def keep_expiring(app: Any) -> None:
    """Let what *app* sends reach a worker, expired or not, if ``dead_letter_expired`` is set.

    Celery gives a task that expires RabbitMQ's own clock as well: the broker then drops it, with
    no worker there to report it or to keep it. The ``expires`` field says the same and stays.
    """
    base: Any = symbol_by_name(app.amqp_cls)

    class AMQP(base):  # type: ignore[misc]
        def _create_task_sender(self) -> Callable[..., Any]:
            send: Callable[..., Any] = super()._create_task_sender()
            return _without_the_clock(send) if _keeps_expired(app) else send

    app.amqp_cls = AMQP
    app.__dict__.pop("amqp", None)  # one that is made already knows nothing yet


def warn_of_the_brokers_clock(app: Any, settings: Settings) -> None:
    """Tell a worker of *app* that keeps expired tasks, by its flag, of those that it never sees."""
    if settings.enabled and settings.dead_letter_expired and not _keeps_expired(app):
        logger.warning(
            "--dead-letter-expired keeps only what reaches this worker: RabbitMQ drops expired "
            "tasks of this app by its own clock. Set %sdead_letter_expired = True wherever "
            "tasks are sent",
            PREFIX,
        )


def _keeps_expired(app: Any) -> bool:
    enabled = app.conf.get(f"{PREFIX}enabled", True)
    return bool(enabled and app.conf.get(f"{PREFIX}dead_letter_expired", False))


def _without_the_clock(send: Callable[..., Any]) -> Callable[..., Any]:
    def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
        # A time to live that the sender has asked for himself is none of ours.
        if message.headers.get("expires") or _expires_inside(message.body):
            options.pop("expiration", None)
        return send(producer, name, message, **options)

    return send_task_message


def _expires_inside(body: Any) -> bool:
    """Whether a message of protocol 1, whose *body* holds its fields, says when it expires."""
    return isinstance(body, dict) and bool(body.get("expires"))
