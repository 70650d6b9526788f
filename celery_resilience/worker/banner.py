"""What a worker's banner says about us."""

from __future__ import annotations

import sys
from typing import Any

from celery_resilience.settings import Settings
from celery_resilience.task.policies import policies_of
from celery_resilience.worker.transport import OWN, WorkerTransport

__all__ = ["add_to_banner"]

_KINDS = {"redis": "Redis", "amqp": "RabbitMQ"}


def add_to_banner(c: Any, settings: Settings, transport: WorkerTransport) -> None:
    """Let the banner of the worker that has made the consumer *c* tell that we are there."""
    worker = c.controller
    startup_info = getattr(worker, "startup_info", None)  # an embedded worker has none
    if startup_info is None:
        return

    def with_ours(**options: Any) -> str:
        lines = "\n".join(f"{'':16}.> {line}" for line in _lines(c, settings, transport))
        return f"{startup_info(**options)} {'-' * 14} [resilience]\n{lines}\n"

    worker.startup_info = with_ours


def _lines(c: Any, settings: Settings, transport: WorkerTransport) -> list[str]:
    ours = sys.modules["celery_resilience"]
    version = f"version:      {ours.__version__}"
    broker = f"broker:       {_kind(c.conninfo, transport)}"
    if not settings.enabled:
        return [version, "switched off: stock Celery decides about failures", broker]
    return [
        version,
        broker,
        f"dead letters: {settings.dead_letter_queue}",
        f"policies:     {_policies(c.app, settings)}",
    ]


def _kind(connection: Any, transport: WorkerTransport) -> str:
    driver = connection.get_transport_cls().driver_type
    kind = _KINDS.get(driver)
    if kind is None:
        return f"{driver}: workers hold scheduled retries"
    if transport.name is None or driver != "redis":
        return kind
    if transport.name == OWN:
        return f"{kind}, through our own transport"
    return f"{kind}, through kombu's transport: {transport.why}"


def _policies(app: Any, settings: Settings) -> str:
    policies = policies_of(app)
    ours = [task for task in app.tasks.values() if hasattr(task, "policy_by_options")]
    chosen = [policies.of(task) for task in ours]
    different = {id(each.policy) for each in chosen if each.by}
    governed = sum(1 for each in chosen if each.by)
    text = f"{len(different)} for {governed} of {len(app.tasks)} tasks"
    return f"{text}, {settings.failure_policies}" if settings.failure_policies else text
