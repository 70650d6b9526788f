"""All that this package relies on inside Celery, kombu, billiard, py-amqp and redis-py.

``celery_resilience.worker.internals.SILENT`` is the part that a worker looks at too. What is here
fails with an error where it is used. ``test_internals.py`` looks at all of it with the installed
versions, and reads our code for what is missing here.
"""

from __future__ import annotations

from typing import Any

from celery_resilience.worker.internals import SILENT, Internal
from tests.unit.internals_imported import IMPORTED

REQUEST = "celery.worker.request:Request"
CONSUMER = "celery.worker.consumer.consumer:Consumer"
REDIS = "kombu.transport.redis:"
VIRTUAL = "kombu.transport.virtual.base:"

SETTLE = "the message could not be settled"
STARTS = "deaths of a worker could not be counted"
TAKE = "resilient-redis:// could not take messages"
LOSS = "tasks would run twice after a lost connection"
DECIDE = "failures could not be decided"
GUARD = "malformed messages could not become dead letters"
INSTALL = "install(app) could not cover the app's tasks"
CONFIRM = "retries and dead letters could not be published"

#: owner, names, our file, what breaks, then kind, since and until as in ``Internal``.
ROWS: list[tuple[Any, ...]] = [
    # The app
    ("celery.app.base:Celery", "_task_from_fun register_task _tasks _pending gen_task_name "
     "amqp_cls user_options steps", "install.py", INSTALL),
    ("celery.app.base:Celery._task_from_fun", "name base", "install.py", INSTALL, "takes"),
    ("celery.app.base:Celery.task", "_task_from_fun", "install.py", INSTALL, "uses"),
    ("celery.app.task:Task", "acks_late", "install.py", INSTALL),
    ("celery.app.registry:TaskRegistry", "register", "install.py", INSTALL),
    ("celery.app.amqp:AMQP", "_create_task_sender", "worker/expiration.py",
     "RabbitMQ would drop tasks that expire"),
    ("celery.utils.collections:ConfigurationView", "maps", "settings.py",
     "a stated setting could not be told from a default"),
    ("celery.utils.collections:ConfigurationView.__init__", "changes defaults keys prefix",
     "settings.py", "a stated setting could not be told from a default", "takes"),
    ("celery.utils.collections:ConfigurationView", "_keys prefix", "settings.py",
     "a stated setting could not be told from a default", "uses"),
    ("celery.app.base:Celery", "amqp_cls",
    "worker/expiration.py", "RabbitMQ would drop tasks that expire"),
    ("celery.app.backends:", "BACKEND_ALIASES", "__init__.py",
     "resilient-redis:// would be no result backend"),
    ("kombu.transport:", "TRANSPORT_ALIASES", "__init__.py",
     "resilient-redis:// would be no transport"),
    ("celery.app.autoretry:", "add_autoretry_behaviour", "task/disabled.py",
     "--no-resilience would forget autoretry_for"),
    ("celery.app.autoretry:add_autoretry_behaviour", "_orig_run", "task/disabled.py",
     "Celery's autoretry would run beside the policy", "uses"),
    ("celery.app.autoretry:add_autoretry_behaviour", "_orig_run", "task/base.py",
     "Celery's autoretry would run beside the policy", "uses"),
    # Tasks
    ("celery.app.task:Task", "abstract Request acks_late __trace__ on_bound start_strategy retry "
     "apply request_stack request", "task/base.py", DECIDE),
    ("celery.app.task:Task", "signature_from_request MaxRetriesExceededError",
     "task/requested_retry.py", "self.retry could not be followed"),
    ("celery.app.task:Task.retry", "args kwargs exc throw eta countdown max_retries",
     "task/requested_retry.py", "self.retry could not be followed", "takes"),
    ("celery.app.task:Task.apply", "args kwargs link link_error task_id retries throw logfile "
     "loglevel headers", "task/base.py", "eager tasks could not be retried", "takes"),
    ("celery.app.task:Context", "retries called_directly is_eager delivery_info chain callbacks "
     "errbacks chord expires timelimit", "task/decide.py", DECIDE),
    ("celery.exceptions:Retry", "sig when exc is_eager", "task/requested_retry.py",
     "a Retry that a body raises could not be followed"),
    ("celery.exceptions:Reject", "requeue reason", "worker/request.py", SETTLE),
    ("celery._state:", "_task_stack", "task/continuation.py",
     "callbacks of a replayed chain would have no parent"),
    # Where the body runs
    ("celery.app.trace:", "build_tracer TraceInfo trace_ok_t trace_task", "task/trace.py", DECIDE),
    ("celery.app.trace:build_tracer", "name task loader hostname app Info", "task/trace.py", DECIDE,
     "takes"),
    ("celery.app.trace:build_tracer.trace_task", "uuid args kwargs request",
     "task/trace.py", DECIDE,
     "keeps"),
    ("celery.app.trace:TraceInfo", "state retval", "task/trace_info.py", DECIDE),
    ("celery.app.trace:TraceInfo", "state retval", "task/trace.py", DECIDE),
    ("celery.app.trace:TraceInfo.handle_error_state", "task req eager call_errbacks",
     "task/trace_info.py", DECIDE, "takes"),
    ("celery.app.trace:TraceInfo.handle_failure", "task req store_errors call_errbacks",
     "task/trace_info.py", DECIDE, "takes"),
    ("celery.app.trace:TraceInfo.handle_retry", "task req store_errors kwargs",
     "task/trace_info.py", DECIDE, "takes"),
    ("billiard.einfo:ExceptionInfo", "exception traceback tb type internal",
    "task/einfo.py", DECIDE),
    ("billiard.einfo:", "ExceptionInfo ExceptionWithTraceback Traceback",
    "task/einfo.py", DECIDE),
    ("billiard.einfo:", "ExceptionWithTraceback", "worker/announce.py", DECIDE),
    ("billiard.pool:", "SIG_SOFT_TIMEOUT soft_timeout_sighandler", "task/async_body.py",
     "an async body would outlive its soft time limit"),
    ("celery.utils.serialization:", "get_pickleable_exception create_exception_cls",
     "task/einfo.py", DECIDE),
    ("celery.utils.serialization:", "raise_with_context", "task/requested_retry.py", DECIDE),
    ("kombu.serialization:", "registry", "messages/changed.py",
     "arguments changed by the body would not be sent with its retry"),
    # The request
    (REQUEST, "_request_dict _payload _message _delivery_info _task _expires _context _app "
     "_hostname _connection_errors _already_cancelled _already_revoked acknowledged time_start",
     "worker/request.py", SETTLE),
    (REQUEST, "_announce_revoked acknowledge cancel maybe_expire on_failure on_retry on_timeout "
     "reject send_event store_errors", "worker/request.py", SETTLE),
    (f"{REQUEST}.on_failure", "exc_info send_failed_event return_ok", "worker/request.py", SETTLE,
     "takes"),
    (f"{REQUEST}._announce_revoked", "reason terminated signum expired",
     "worker/request.py", SETTLE,
     "takes"),
    (f"{REQUEST}.on_timeout", "soft timeout", "worker/request.py", SETTLE, "takes"),
    ("celery.worker.request:", "send_revoked", "worker/request.py", SETTLE),
    (REQUEST, "_task _context _eventer", "worker/announce.py", "failures would not be announced"),
    (REQUEST, "_task _expires _request_dict", "worker/decide.py", DECIDE),
    (REQUEST, "_task _context store_errors ignore_result", "worker/result_store.py",
     "outcomes could not be stored"),
    ("celery.backends.base:KeyValueStoreBackend", "get_key_for_task get set delete",
     "task/context_store.py", "a context could not be kept by its key"),
    (REQUEST, "_message _app", "worker/rejection.py", SETTLE),
    (REQUEST, "_app", "worker/settle.py", SETTLE),
    (REQUEST, "_request_dict _message _app _hostname _already_revoked _already_cancelled",
     "worker/outcome.py", "how a delivery ended would not be reported"),
    (REQUEST, "_message _task execute_using_pool", "worker/revocation.py",
     "scheduled retries of revoked tasks would run"),
    (REQUEST, "_request_dict",
    "worker/revoked_retries.py", "scheduled retries of revoked tasks would run"),
    (REQUEST, "_message _already_cancelled _apply_result", "worker/lost_connection.py", LOSS),
    (REQUEST, "_message _app execute_using_pool", "worker/redelivery.py", STARTS),
    (REQUEST, "_message _task _hostname", "worker/poison.py", STARTS),
    (REQUEST, "_message _app", "worker/peers.py", LOSS),
    ("celery.worker.control:Panel", "register", "worker/peers.py", LOSS),
    (REQUEST, "_message _app _apply_result", "worker/shutdown.py",
     "what was not started would be counted"),
    ("celery.worker.state:", "requests reserved_requests active_requests revoked task_ready "
     "should_stop should_terminate", "worker/redelivery.py", STARTS),
    ("celery.worker.state:", "requests reserved_requests", "worker/isolated_runs.py", STARTS),
    ("celery.worker.state:", "scheduled_requests",
    "worker/lost_connection.py", LOSS, "has", (5, 7)),
    ("celery.worker.control:Panel", "data", "worker/revocation.py",
     "scheduled retries of revoked tasks would run"),
    # The consumer
    (CONSUMER, "_restore_prefetch_count_after_connection_restart on_close add_task_queue "
     "ensure_connected call_soon blueprint pool hub", "worker/celery_patches.py", SETTLE),
    (CONSUMER, "call_soon_ack", "worker/celery_patches.py", SETTLE, "has", (5, 7)),
    (CONSUMER, "blueprint controller pool timer hub create_task_handler", "worker/bootstep.py",
     SETTLE),
    (CONSUMER, "task_buckets pool", "worker/shutdown.py", "what was not started would be counted"),
    (CONSUMER, "on_unknown_message on_unknown_task on_invalid_task on_decode_error "
     "create_task_handler connection_errors", "worker/unprocessable.py", GUARD),
    ("kombu.message:Message", "delivery_info ack_log_error", "worker/unprocessable.py", GUARD),
    (f"{CONSUMER}.on_unknown_message", "body message", "worker/unprocessable.py", GUARD, "takes"),
    (f"{CONSUMER}.on_unknown_task", "body message exc", "worker/unprocessable.py", GUARD, "takes"),
    (f"{CONSUMER}.on_invalid_task", "body message exc", "worker/unprocessable.py", GUARD, "takes"),
    (f"{CONSUMER}.on_decode_error", "message exc", "worker/unprocessable.py", GUARD, "takes"),
    ("celery.app.task:Task", "Request", "worker/attach.py", "requests would be stock Celery's"),
    (CONSUMER, "blueprint controller",
    "worker/attach.py", "a reloaded worker would not get our step"),
    ("celery.bootsteps:Blueprint", "on_close started state", "worker/attach.py",
     "a reloaded worker would not get our step"),
    ("celery.bootsteps:StartStopStep", "name start stop info", "worker/bootstep.py", SETTLE),
    ("celery.bootsteps:Step", "requires", "worker/bootstep.py", SETTLE),
    ("celery.bootsteps:", "RUN", "worker/loop.py", SETTLE),
    ("celery.worker.worker:WorkController", "_process_task", "worker/loop.py", STARTS),
    ("celery.apps.worker:Worker", "startup_info",
    "worker/banner.py", "the banner would not tell of us"),
    (REQUEST, "_message", "worker/bootstep.py", SETTLE),
    ("billiard.pool:ApplyResult", "_accepted _write_to ready", "worker/jobs.py", LOSS),
    ("billiard.process:BaseProcess", "_is_alive", "worker/jobs.py", LOSS),
    ("celery.concurrency.asynpool:AsynPool", "_fileno_to_outq", "worker/jobs.py", LOSS),
    ("celery.concurrency.prefork:TaskPool", "register_with_event_loop", "worker/jobs.py", LOSS),
    ("celery.concurrency.base:BasePool", "stop", "worker/jobs.py", LOSS),
    ("kombu.asynchronous.hub:Hub", "readers reset add_reader", "worker/jobs.py", LOSS),
    ("celery.concurrency.base:BasePool", "_pool", "worker/jobs.py", LOSS),
    ("celery.concurrency.base:BasePool", "_pool", "transport/slots.py",
     "until Celery 5.7 gevent's workers would take one message at a time"),
    ("celery.worker.state:", "should_terminate", "worker/jobs.py", LOSS),
    ("celery.concurrency.base:BasePool", "on_apply", "worker/celery_patches.py", SETTLE),
    ("celery.concurrency.base:BasePool", "uses_semaphore", "worker/shutdown.py", SETTLE),
    ("celery.concurrency.solo:", "TaskPool", "worker/celery_patches.py", SETTLE),
    ("celery.platforms:", "Signals signals", "worker/green_signals.py", SETTLE),
    ("celery.concurrency.base:BasePool", "is_green", "worker/bootstep.py", SETTLE),
    ("celery.concurrency.gevent:TaskPool", "spawn_n", "worker/bootstep.py", SETTLE),
    ("celery.concurrency.base:BasePool", "is_green", "task/async_body.py",
     "async bodies would share one event loop"),
    # Messages
    ("kombu.message:Message", "_state ack_log_error acknowledged ack channel delivery_tag "
     "delivery_info errors", "worker/lost_connection.py", LOSS),
    ("kombu.message:Message", "_state ack", "brokers/rabbitmq/broker.py", SETTLE),
    ("kombu.message:Message", "_state ack", "brokers/redis/broker.py", SETTLE),
    (f"{VIRTUAL}Message", "_raw", "messages/envelope.py", "copies would not be what was received"),
    (f"{VIRTUAL}Message", "_raw", "worker/source_queue.py", "a message's queue would not be known"),
    (f"{VIRTUAL}Message", "_raw", "worker/rejection.py", SETTLE),
    (f"{VIRTUAL}Message", "_raw", "brokers/redis/lease_qos.py", TAKE),
    ("kombu.messaging:Consumer", "_active_tags on_message", "worker/source_queue.py",
     "a message's queue would not be known"),
    ("kombu.messaging:Consumer", "on_message", "worker/bootstep.py", GUARD),
    # Virtual transports
    (f"{VIRTUAL}Transport", "_deliver _callbacks Channel", "worker/source_queue.py",
     "a message's queue would not be known"),
    (f"{VIRTUAL}Transport._deliver", "message queue", "worker/source_queue.py",
     "a message's queue would not be known", "takes"),
    (f"{VIRTUAL}Transport", "_callbacks",
    "worker/celery_patches.py", "a message's queue would not be known"),
    (f"{VIRTUAL}Channel", "codecs", "worker/source_queue.py", GUARD),
    (f"{VIRTUAL}Channel", "_size _has_queue _new_queue _put", "brokers/plain.py",
     "other brokers could not be settled on"),
    (f"{VIRTUAL}Channel", "_lookup _active_queues _get_message_priority",
     "brokers/redis/lease_qos.py",
     TAKE),
    (f"{REDIS}Channel", "active_queues", "brokers/redis/lease_qos.py", TAKE),
    (f"{VIRTUAL}Channel", "_get_message_priority", "brokers/redis/broker.py", SETTLE),
    (f"{VIRTUAL}QoS", "_delivered _dirty append ack can_consume can_consume_max_estimate",
     "brokers/redis/lease_qos.py", TAKE),
    # Redis
    (f"{REDIS}Channel", "_q_for_pri", "brokers/redis/lease_qos.py", TAKE),
    (f"{REDIS}Channel", "_q_for_pri priority_steps unacked_key "
     "unacked_index_key global_keyprefix ack_emulation", "brokers/redis/broker.py", SETTLE),
    (f"{REDIS}Channel", "_get_pool _create_client pool", "brokers/connections.py", SETTLE),
    ("redis.connection:ConnectionPool", "connection_kwargs max_connections connection_class",
     "brokers/connections.py", SETTLE),
    ("redis.connection:AbstractConnection", "_sock", "brokers/connections.py", SETTLE),
    (REQUEST, "_message", "transport/slots.py", "a look would take too much, or too little"),
    ("kombu.transport.virtual.base:QoS", "_delivered _dirty", "transport/slots.py",
     "a look would take too much, or too little"),
    ("kombu.transport.virtual.base:QoS", "_dirty _quick_ack", "transport/prefetched.py",
     "a look would not know how fast the pool is"),
    (CONSUMER, "ensure_connected connection_for_read", "worker/transport.py",
     "a worker on redis:// would take through kombu's transport"),
    ("redis.connection:AbstractConnection", "_sock send_command send_packed_command "
     "read_response can_read disconnect connect", "transport/connection.py", TAKE),
    ("redis.connection:AbstractConnection", "_sock send_command read_response",
     "transport/notifications.py", TAKE),
    ("redis.client:Redis", "connection", "transport/connection.py", TAKE),
    ("redis.client:Redis.__init__", "connection_pool", "transport/connection.py", TAKE, "takes"),
    ("redis.client:Redis", "execute_command", "brokers/redis/leases.py", SETTLE),
    (f"{REDIS}QoS", "append ack reject restore_unacked restore_by_tag",
     "brokers/redis/lease_qos.py",
     TAKE),
    (f"{REDIS}QoS", "append ack reject restore_unacked restore_by_tag", "transport/prefetched.py",
     TAKE),
    (f"{REDIS}Channel", "_q_for_pri", "transport/prefetched.py", TAKE),
    (f"{REDIS}Channel", "QoS basic_consume _update_queue_cycle _basic_cancel close _connparams "
     "_create_client _on_connection_disconnect _after_fork pool conn_or_acquire",
     "transport/channel.py", TAKE),
    (f"{VIRTUAL}Channel", "Message", "transport/channel.py", TAKE),
    (f"{VIRTUAL}Transport", "_callbacks _deliver", "transport/channel.py", TAKE),
    (f"{REDIS}Channel._create_client", "asynchronous", "transport/channel.py", TAKE, "takes"),
    (f"{REDIS}Channel._connparams", "asynchronous", "transport/channel.py", TAKE, "takes"),
    (f"{REDIS}Channel", "_in_poll _queue_cycle _q_for_pri unacked_key unacked_index_key "
     "ack_emulation active_queues priority_steps", "transport/fetching.py", TAKE),
    ("kombu.utils.scheduling:", "priority_cycle round_robin_cycle sorted_cycle",
     "transport/fetching.py", TAKE),
    (f"{REDIS}MultiChannelPoller", "get on_poll_start on_readable fds discard close _fd_to_chan "
     "_channels _in_protected_read _register_LISTEN after_read poller eventflags handle_event "
     "maybe_restore_messages", "transport/poller.py", TAKE),
    (f"{REDIS}MultiChannelPoller.get", "callback timeout", "transport/poller.py", TAKE, "takes"),
    (f"{REDIS}Transport", "Channel register_with_event_loop default_port cycle",
     "transport/__init__.py", TAKE),
    (f"{REDIS}SentinelChannel", "_sentinel_managed_pool", "transport/__init__.py", TAKE),
    ("kombu.connection:Connection", "alt ssl", "transport/__init__.py", TAKE),
    # RabbitMQ
    ("amqp.connection:Connection", "on_inbound_frame", "brokers/rabbitmq/pyamqp.py",
     "one unreadable message would end worker after worker"),
    ("amqp.basic_message:Message", "inbound_header", "brokers/rabbitmq/pyamqp.py",
     "one unreadable message would end worker after worker"),
    ("amqp.serialization:", "dumps", "brokers/rabbitmq/pyamqp.py",
     "one unreadable message would end worker after worker"),
    ("amqp.connection:Connection", "on_blocked on_unblocked sock collect",
     "brokers/rabbitmq/connection.py", CONFIRM),
    ("amqp.connection:Connection", "frame_max", "brokers/rabbitmq/publisher.py", CONFIRM),
    ("amqp.channel:Channel", "open confirm_select", "brokers/rabbitmq/connection.py", CONFIRM),
    ("amqp.channel:Channel", "_basic_publish events", "brokers/rabbitmq/publisher.py", CONFIRM),
    ("amqp.basic_message:Message", "_serialize_properties",
    "brokers/rabbitmq/publisher.py", CONFIRM),
    ("amqp.channel:Channel", "_callbacks",
    "worker/source_queue.py", "deleted queues would not be noticed"),
    ("amqp.spec:Basic", "Cancel Nack",
    "brokers/rabbitmq/browse.py", "letters could not be looked at"),
    ("amqp.channel:Channel", "send_method",
    "brokers/rabbitmq/browse.py", "letters could not be looked at"),
    ("amqp.channel:Channel", "open channel_id is_open _callbacks",
    "brokers/rabbitmq/pyamqp.py", LOSS),
    ("amqp.transport:_AbstractTransport", "sock _read_buffer", "brokers/rabbitmq/pyamqp.py", LOSS),
    ("kombu.connection:Connection", "drain_events heartbeat_check connected",
     "brokers/rabbitmq/pyamqp.py", LOSS),
    ("kombu.connection:Connection", "drain_events connected connection",
     "brokers/rabbitmq/greenlets.py",
     "a worker of greenlets would not notice a lost connection"),
    ("amqp.connection:Connection", "blocking_read read_timeout transport",
     "brokers/rabbitmq/greenlets.py",
     "a greenlet would wait for RabbitMQ for ever"),
    ("kombu.connection:Connection", "_establish_connection", "brokers/rabbitmq/greenlets.py",
     "a greenlet would wait for RabbitMQ for ever once kombu has connected again"),
    ("amqp.transport:_AbstractTransport", "_read sock", "brokers/rabbitmq/greenlets.py",
     "a worker would hang on half a frame"),
    ("amqp.transport:SSLTransport._read", "n initial _errnos", "brokers/rabbitmq/greenlets.py",
     "a worker would hang on half a frame", "takes"),
]  # fmt: skip


def _internal(owner: str, names: str, file: str, breaks: str, kind: str = "has",
              since: tuple[int, ...] = (), until: tuple[int, ...] = ()) -> Internal:  # fmt: skip
    return Internal(owner, names, file, breaks, kind, since=since, until=until)


ALL: tuple[Internal, ...] = (*SILENT, *(_internal(*row) for row in (*ROWS, *IMPORTED)))
