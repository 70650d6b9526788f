"""The other end of a test's broker: sends tasks, reads letters, counts executions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import GroupResult
from kombu import Queue

from celery_resilience.brokers.connect import open_broker
from celery_resilience.messages.dead_letter import DeadLetter
from tests.servers import eventually
from tests.worker import Broker


class Client:
    """A producer that knows no task, as in another code base than the worker's."""

    def __init__(self, broker: Broker, record: Path) -> None:
        self.app = Celery("client", broker=broker.broker_url, backend=broker.backend_url)
        arguments = {"x-queue-type": broker.queue_type}
        self.app.conf.update(
            task_default_queue="shop",
            task_queues=[Queue(name, queue_arguments=arguments) for name in ("shop", "other")],
            task_default_queue_type=broker.queue_type,
            accept_content=["json", "pickle", "msgpack", "yaml"],
        )
        if "redis" not in broker.name:
            # What RabbitMQ has not confirmed it may lose when it is killed.
            self.app.conf.broker_transport_options = {"confirm_publish": True}
        # Results are polled for: Celery's subscription outlives the test's server, and complains.
        consumer = self.app.backend.result_consumer
        consumer.consume_from = consumer.cancel_for = lambda task_id: None
        self.record = record
        self.env = {"RECORD": str(record)}

    def close(self) -> None:
        """Close every connection."""
        self.app.backend.client.connection_pool.disconnect()
        self.app.close()

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Send ``tests.apps.shop.<task>``; the AsyncResult."""
        return self.app.send_task(f"tests.apps.shop.{task}", args, **options)

    def state(self, result: Any) -> str:
        """The state that is stored for *result* now."""
        return str(self.app.backend.get_task_meta(result.id)["status"])

    def value(self, result: Any, timeout: float = 40) -> Any:
        """What *result*'s task has returned, once it has; a list for a group's."""
        if isinstance(result, GroupResult):
            return [self.value(each, timeout) for each in result.results]
        eventually(
            lambda: self.state(result) == "SUCCESS", timeout, message=f"{result.id} succeeds"
        )
        return self.app.backend.get_task_meta(result.id)["result"]

    def put(self, queue: str, body: Any, **options: Any) -> None:
        """Put a message that Celery did not make into *queue*."""
        with self.app.connection_for_write() as connection:
            producer = connection.Producer(auto_declare=False)
            producer.publish(body, exchange="", routing_key=queue, **options)

    def letters(self, *queues: str) -> list[DeadLetter]:
        """The dead letters in *queues*, ``dead_letter`` if none is named, the oldest first."""
        with self.app.connection_for_read() as connection:
            broker = open_broker(connection)
            try:
                return [
                    DeadLetter.from_envelope(found.envelope)
                    for queue in queues or ("dead_letter",)
                    for found in broker.browse(queue)
                ]
            finally:
                broker.close()

    def count(self, queue: str) -> int:
        """How many messages lie in *queue*, ready to be delivered."""
        with self.app.connection_for_read() as connection:
            broker = open_broker(connection)
            try:
                return broker.count(queue)
            finally:
                broker.close()

    def inspect(self, command: str, *workers: str) -> dict[str, Any]:
        """What *workers* answer to ``celery inspect`` *command*, by name, on a connection of its
        own: the server of a pooled one may have died."""
        with self.app.connection_for_write() as connection:
            inspect = self.app.control.inspect(
                list(workers), timeout=10, limit=len(workers), connection=connection
            )
            return getattr(inspect, command)() or {}

    def ping(self, timeout: float = 1) -> None:
        """Wait for the workers' answers, *timeout* seconds, on a connection of its own as well."""
        with self.app.connection_for_write() as connection:
            self.app.control.ping(timeout=timeout, connection=connection)

    def executions(self) -> Counter[str]:
        """How often each body was started, by the name that it was given."""
        return Counter(line.split()[0] for line in self.lines())

    def lines(self) -> Sequence[str]:
        """Every line of the record."""
        return self.record.read_text().splitlines() if self.record.exists() else []
