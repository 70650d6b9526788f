"""Helpers of Celery's, kombu's and py-amqp's own that this package imports.

Each fails with an ImportError, or an AttributeError, which says neither who needs it nor what for.
"""

from __future__ import annotations

from typing import Any

JSON = "messages, letters and scheduled retries could not be written or read"
STATE = "a worker would not know what it has received, runs or has to end for"
REVOKED = "scheduled retries of revoked tasks would run"
COMMANDS = "the commands could not be run"

#: owner, names, our files, what breaks.
_HELPERS = [
    ("celery.app:", "task", "operate/mark_failed.py worker/revoked_retries.py",
     "tasks that are dropped or revoked could not be marked"),
    ("celery.app.utils:", "Settings", "settings.py", "settings could not be read"),
    ("celery.backends.base:", "BaseKeyValueStoreBackend", "task/context_store.py",
     "a context could not be kept by its key"),
    ("celery.bin.base:", "CeleryCommand CeleryOption handle_preload_options",
     "cli/dlq.py cli/options.py cli/resilience.py cli/retries.py worker/flags.py", COMMANDS),
    ("celery.bin.worker:", "worker", "cli/resilience.py", "the worker's flags could not be read"),
    ("celery.platforms:", "EX_FAILURE EX_UNAVAILABLE",
     "cli/change.py cli/dlq.py cli/exits.py cli/resilience.py", COMMANDS),
    ("celery.utils:", "uuid", "task/base.py", "eager tasks could not be retried"),
    ("celery.utils.functional:", "maybe_list",
     "worker/revocation.py worker/revoked_retries.py", REVOKED),
    ("celery.utils.imports:", "symbol_by_name", "task/base.py worker/attach.py",
     "requests would be stock Celery's"),
    ("celery.utils.saferepr:", "saferepr",
     "messages/changed.py task/continuation.py worker/announce.py",
     "arguments could not be shown as Celery shows them"),
    ("celery.utils.serialization:", "create_exception_cls", "operate/mark_failed.py",
     "a dropped task could not be marked as failed"),
    ("celery.utils.time:", "maybe_iso8601 maybe_make_aware",
     "messages/envelope.py task/requested_retry.py", "eta and expires could not be read"),
    ("celery.worker.consumer:", "Consumer Tasks", "worker/attach.py worker/transport.py",
     "the worker could not be extended"),
    ("celery.worker.control:", "Panel", "worker/peers.py worker/revocation.py",
     "workers could not be asked and told"),
    ("celery.worker.request:", "Request", "worker/request.py",
     "outcomes would be settled by stock Celery"),
    ("celery.worker.state:", "active_requests reserved_requests",
     "transport/slots.py worker/lost_connection.py worker/revocation.py worker/shutdown.py", STATE),
    ("celery.worker.state:", "revoked", "worker/delivery_limit.py worker/request.py "
     "worker/revocation.py worker/revoked_retries.py", REVOKED),
    ("celery.worker.state:", "revoked_stamps", "worker/revoked_retries.py", REVOKED),
    ("celery.worker.state:", "should_stop should_terminate",
     "worker/loop.py worker/request.py worker/shutdown.py", STATE),
    ("celery.worker.state:", "successful_requests", "worker/lost_connection.py",
     "tasks would run twice after a lost connection"),
    ("celery.worker.state:", "task_ready", "worker/decide.py worker/request.py", STATE),
    ("billiard.einfo:", "ExceptionInfo", "task/trace.py", "failures could not be decided"),
    ("kombu.compression:", "compress decompress", "messages/envelope.py",
     "compressed messages could not be copied"),
    ("kombu.serialization:", "prepare_accept_content", "operate/replay.py operate/retries.py",
     "what a worker would refuse could not be told"),
    ("kombu.transport:", "TRANSPORT_ALIASES", "transport/selection.py",
     "a worker on redis:// would take through kombu's transport"),
    ("kombu.transport.redis:", "QoS", "brokers/redis/lease_qos.py transport/prefetched.py",
     "what a dead worker held would not be found"),
    ("kombu.transport.virtual:", "QoS", "brokers/redis/broker.py brokers/redis/lease_qos.py",
     "what a dead worker held would not be found"),
    ("kombu.utils.collections:", "HashedSeq", "transport/selection.py",
     "a worker on redis:// would take through kombu's transport"),
    ("kombu.utils.compat:", "detect_environment", "transport/poller.py",
     "resilient-redis:// could not take messages"),
    ("kombu.utils.imports:", "symbol_by_name", "worker/expiration.py",
     "RabbitMQ would drop tasks that expire"),
    ("kombu.utils.json:", "dumps", "brokers/redis/broker.py brokers/redis/lease_qos.py "
     "brokers/redis/scheduled.py messages/dead_letter.py messages/envelope.py "
     "task/continuation.py transport/channel.py transport/fetching.py", JSON),
    ("kombu.utils.json:", "loads", "brokers/redis/scheduled.py messages/dead_letter.py "
     "task/continuation.py transport/prefetched.py", JSON),
    ("amqp.basic_message:", "Message", "brokers/rabbitmq/pyamqp.py",
     "one unreadable message would end worker after worker"),
    ("amqp.spec:", "Basic", "brokers/rabbitmq/browse.py worker/source_queue.py",
     "letters could not be looked at"),
    ("amqp.spec:", "Channel", "brokers/rabbitmq/pyamqp.py",
     "tasks would run twice after a lost connection"),
]  # fmt: skip

IMPORTED: list[tuple[Any, ...]] = [
    (owner, names, file, breaks)
    for owner, names, files, breaks in _HELPERS
    for file in files.split()
]
