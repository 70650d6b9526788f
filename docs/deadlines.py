"""Every connection and call that a worker or a command waits for, and for how long at most.

It is what the docs' table is made of, and each row names the test that lets it hang.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_resilience.brokers import connect as reach
from celery_resilience.brokers import connections
from celery_resilience.brokers.rabbitmq import publisher as confirms
from celery_resilience.brokers.redis.leases import LEASE
from celery_resilience.transport.notifications import SAFETY
from celery_resilience.worker import background as aside
from celery_resilience.worker import peers
from celery_resilience.worker.lease import DOUBTED

__all__ = ["DEADLINES", "Deadline"]


@dataclass(frozen=True)
class Deadline:
    """How long one of them may take."""

    what: str
    #: Seconds until it counts as hanging; None: that is Celery's, and *option* bounds it.
    seconds: float | None
    #: What happens then.
    past: str
    #: The option of Celery's, kombu's or ours that changes it.
    option: str
    #: The row of the fault matrix, or the module of tests, that lets it hang.
    test: str


_SOCKET = "`broker_transport_options`: `socket_timeout`"

DEADLINES: tuple[Deadline, ...] = (
    Deadline(
        "Redis: settlements, dead letters, starts",
        connections.SETTLE,
        "a new connection, on which the settlement is repeated until it works; the "
        "worker's loop stands meanwhile",
        _SOCKET,
        "18-settlement",
    ),
    Deadline(
        "Redis: the lease, and moving due retries (a thread of its own)",
        connections.SETTLE,
        f"a new connection; a worker that could not renew for {DOUBTED:g} s takes no more messages "
        f"until it can, and after {LEASE:g} s others requeue what it holds",
        _SOCKET,
        "18-lease",
    ),
    Deadline(
        "Redis: taking messages",
        connections.ANSWER,
        "the worker connects again; running tasks go on",
        "none",
        "18-consumer",
    ),
    Deadline(
        "Redis: taking messages through kombu's transport",
        None,
        "kombu 5.7 drops the connection when it has not answered; one before waits for the "
        "kernel's keepalive, a minute. What it took last may be lost (kombu's window)",
        "`broker_transport_options`: `health_check_interval` (25 s)",
        "18-consumer",
    ),
    Deadline(
        "Redis: notifications of new messages",
        SAFETY,
        "the worker polls, and asks for them on a new connection",
        "none",
        "18-wakeup",
    ),
    Deadline(
        "Redis: acknowledgements and all else that kombu asks in the worker's loop",
        connections.ANSWER,
        "the worker connects again; running tasks go on",
        _SOCKET,
        "18-broker",
    ),
    Deadline(
        "Redis: remote control",
        None,
        "tasks go on; kombu subscribes again",
        "`broker_transport_options`: `health_check_interval` (25 s)",
        "18-remote",
    ),
    Deadline(
        "RabbitMQ: a confirm of a retry or a letter",
        confirms.PATIENCE,
        "a new connection, on which it is published again; messages go on meanwhile",
        "none",
        "18-confirms",
    ),
    Deadline(
        "RabbitMQ: an answer that the worker waits for (declaring, consuming)",
        connections.ANSWER,
        "the worker connects again",
        "`broker_transport_options`: `read_timeout`, `write_timeout`",
        "18-declaring",
    ),
    Deadline(
        "RabbitMQ: the other workers, asked for a message that came again too often (a thread)",
        peers.ASKED,
        "as if none of them had it: it is a dead letter",
        "none; `worker_enable_remote_control = False`: they are not asked",
        "test_hangs",
    ),
    Deadline(
        "RabbitMQ: taking messages",
        None,
        "two heartbeats missed: the worker connects again, and RabbitMQ delivers again what it had",
        "`broker_heartbeat` (120 s)",
        "18-delivery",
    ),
    Deadline(
        "the result store, asked and told by the worker's main process (a thread beside it)",
        aside.ANSWER,
        "the worker goes on as if it were away, and does not wait again until it answers; that a "
        "task has failed, was rejected or revoked is stored then",
        "none",
        "18-results",
    ),
    Deadline(
        "the result store, being asked by that thread while a pool process is forked",
        aside.FORK,
        "it is forked all the same; the locks of the store's client are new ones there",
        "none",
        "test_aside",
    ),
    Deadline(
        "the result store, in the process that runs the body",
        None,
        "that process waits, the others go on",
        "`redis_socket_timeout` (120 s), `result_backend_transport_options`: `retry_policy`",
        "18-results",
    ),
    Deadline(
        "the result store, told that scheduled retries are revoked (a thread of its own)",
        aside.ANSWER,
        "the retries wait as before, and are dropped when they are due by the workers that were "
        "told",
        "none",
        "test_revoking",
    ),
    Deadline(
        "Redis: a name server, for connections of ours (left behind in a thread)",
        connections.RESOLVE,
        "as if the server were away; while it is overdue it is not waited for again",
        "for Celery's own: `options timeout:2 attempts:1` in `resolv.conf`",
        "test_hangs",
    ),
    Deadline(
        "Redis: opening a connection of ours",
        connections.CONNECT,
        "as if the server were away",
        "`broker_transport_options`: `socket_connect_timeout`",
        "test_hangs",
    ),
    Deadline(
        "RabbitMQ: opening the connection that retries and letters are published on, its name "
        "server too (left behind in a thread)",
        connections.CONNECT,
        "as if the server were away; while it is overdue it is not waited for again, and when it "
        "is there after all it is used",
        "for Celery's own: `broker_connection_timeout` (4 s), `resolv.conf`",
        "18-resolver",
    ),
    Deadline(
        "a command: `dlq`, `retries`, `resilience doctor`",
        reach.TIMEOUT,
        "it says so and ends with 3, *not known*; of a result store that hangs it says so, and "
        "goes on without it",
        "`--timeout`",
        "test_hangs",
    ),
    Deadline(
        "Redis: publishing, in your processes and in bodies",
        None,
        "`apply_async` raises `OperationalError` after it has tried as often as "
        "`task_publish_retry_policy` says; without the option it waits for ever",
        "`broker_transport_options`: `socket_timeout`",
        "18-publishing",
    ),
    Deadline(
        "RabbitMQ: publishing, in your processes and in bodies",
        None,
        "the same; without `confirm_publish` no answer is awaited, and what is sent on a "
        "half-open connection is lost",
        "`broker_transport_options`: `confirm_publish`, `read_timeout`; "
        "`broker_connection_timeout` (4 s)",
        "18-publishing",
    ),
)
