"""The fixtures that the other tests stand on."""

from __future__ import annotations

import time

import pytest
from celery import Celery
from kombu import Connection, Queue

from celery_resilience.brokers.rabbitmq.delay import QUORUM
from tests.servers import eventually

APP = "tests.integration.plain_app"


def test_worker_runs_a_task(broker, start_worker):
    worker = start_worker(APP, broker, pool="solo")
    with Celery("client", broker=broker.broker_url, backend=broker.backend_url) as client:
        client.conf.task_default_queue_type = broker.queue_type
        result = client.send_task(f"{APP}.add", (1, 2))
        assert result.get(timeout=20) == 3
    assert worker.terminate() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_every_pool_starts(redis_broker, start_worker, pool):
    start_worker(APP, redis_broker, pool=pool)


def test_killed_worker_can_be_started_again(redis_broker, start_worker):
    worker = start_worker(APP, redis_broker)
    worker.kill()
    worker.start()
    worker.wait_ready()
    assert worker.log().count(f"{worker.name} ready.") == 2


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_rabbitmq_keeps_what_it_confirmed_when_it_is_killed(rabbitmq_server, queue_type):
    vhost = rabbitmq_server.add_vhost()
    queue = Queue("kept", durable=True, queue_arguments={"x-queue-type": queue_type})
    confirm = {"confirm_publish": True}
    with Connection(rabbitmq_server.url(vhost), transport_options=confirm) as connection:
        producer = connection.Producer()
        producer.publish({"a": 1}, routing_key="kept", declare=[queue], delivery_mode=2)
    # What it confirms are messages: that there is a queue it writes down a moment later.
    rabbitmq_server.evaluate("mnesia:sync_log().")
    rabbitmq_server.kill()
    rabbitmq_server.start()
    with Connection(rabbitmq_server.url(vhost)) as connection:
        message = eventually(lambda: queue(connection.default_channel).get())
    assert message.payload == {"a": 1}
    rabbitmq_server.delete_vhost(vhost)


def test_rabbitmq_survives_that_a_virtual_host_goes_while_its_queues_are_made(rabbitmq_server):
    """Whoever makes them may have been killed; RabbitMQ goes on with what it was told."""
    for n in range(10):
        vhost = rabbitmq_server.add_vhost()
        with Connection(rabbitmq_server.url(vhost)) as connection:
            channel = connection.default_channel
            for level in range(10):
                channel.queue_declare(
                    f"level-{level}", durable=True, auto_delete=False, nowait=True,
                    arguments={**QUORUM, "x-dead-letter-exchange": "elsewhere"},
                )  # fmt: skip
            time.sleep(0.02 * n)
            rabbitmq_server.delete_vhost(vhost)
            connection.collect()
    assert rabbitmq_server.evaluate("is_pid(whereis(rabbit_fifo_dlx_sup)).") == "true"


def test_rabbitmq_moves_messages_at_least_once_for_the_next_test(rabbitmq_server):
    """As after queues were deleted whose messages were just moved."""
    rabbitmq_server.evaluate("supervisor:terminate_child(rabbit_sup, rabbit_fifo_dlx_sup).")
    rabbitmq_server.delete_vhost(rabbitmq_server.add_vhost())
    assert rabbitmq_server.evaluate("is_pid(whereis(rabbit_fifo_dlx_sup)).") == "true"


def test_eventually_says_what_it_waited_for():
    with pytest.raises(AssertionError, match="the moon: not within 0 s, the last value was 0"):
        eventually(lambda: 0, timeout=0, message="the moon")
