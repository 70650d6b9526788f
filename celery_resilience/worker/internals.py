"""What we rely on inside Celery, kombu, billiard and py-amqp, and whether it is still there.

They promise none of it. Most of it fails with an error where it is used; what is listed here would
fail in silence, so a worker looks at it before it takes a message. The whole list, with all that
fails aloud, is in ``tests/unit/internals.py``.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import CodeType
from typing import Any

from celery.exceptions import ImproperlyConfigured

__all__ = ["SILENT", "Internal", "changes", "refuse_changed_internals"]

logger = logging.getLogger("celery_resilience")


@dataclass(frozen=True)
class Internal:
    """Something of another package's that is not part of its documented interface."""

    #: ``module:name.of.it``: a module, a class, a function, or a function within one.
    owner: str
    #: What of it, divided by spaces.
    names: str
    #: Our file that relies on it.
    file: str
    #: What goes wrong without it.
    breaks: str
    #: ``has``: these attributes; ``takes``: these parameters; ``keeps``: these local variables;
    #: ``uses``: it calls or reads what has these names.
    kind: str = "has"
    #: A worker does not start without it: messages would be lost, or failures not be settled.
    refuse: bool = False
    #: The first version that has it, and the first that no longer has.
    since: tuple[int, ...] = ()
    until: tuple[int, ...] = ()


_CONSUMER = "celery.worker.consumer.consumer:Consumer"
_HANDLER = f"{_CONSUMER}.create_task_handler"
_TRACE = "celery.app.trace:"
_REDIS = "kombu.transport.redis:"

#: What fails in silence when it changes.
SILENT: tuple[Internal, ...] = (
    # Where the body runs
    Internal("celery.app.task:Task", "__trace__ start_strategy Request", "task/base.py",
             "stock Celery would decide about failures", refuse=True),
    Internal(f"{_TRACE}fast_trace_task", "__trace__", "task/trace.py",
             "stock Celery would decide about failures", "uses", refuse=True),
    Internal(f"{_TRACE}TraceInfo", "handle_error_state handle_retry handle_failure",
             "task/trace_info.py",
             "failures would be stored otherwise than decided", refuse=True),
    Internal(f"{_TRACE}build_tracer.on_error", "handle_error_state", "task/trace_info.py",
             "the policy would not be asked", "uses", refuse=True),
    Internal(f"{_TRACE}TraceInfo.handle_error_state", "handle_retry handle_failure",
             "task/trace_info.py",
             "failures would be stored otherwise than decided", "uses", refuse=True),
    Internal(f"{_TRACE}build_tracer.trace_task", "state retval", "task/continuation.py",
             "a body that has succeeded would run again if its result can't be stored", "keeps"),
    Internal(f"{_TRACE}build_tracer.trace_task", "callbacks_sent", "task/continuation.py",
             "callbacks could be published twice", "keeps", since=(5, 7)),
    Internal(f"{_TRACE}build_tracer.trace_task", "hostname", "task/trace.py",
             "tasks would not know their worker's name", "keeps"),
    Internal(f"{_TRACE}fast_trace_task", "body content_type content_encoding",
             "messages/changed.py",
             "arguments changed by the body would not be sent with its retry", "keeps"),
    Internal("celery.backends.base:Backend", "mark_as_done store_result", "task/continuation.py",
             "a chain could be published twice"),
    Internal("celery.backends.base:KeyValueStoreBackend", "_get_task_meta_for",
             "worker/result_store.py",
             "a task whose process died after its success would run again"),
    Internal("billiard.common:", "_shutdown_cleanup", "classify/foreign.py",
             "a killed process would count as a failing body"),
    # Where messages are received
    Internal(_CONSUMER, "on_unknown_message on_unknown_task on_invalid_task on_decode_error "
             "create_task_handler", "worker/unprocessable.py",
             "malformed and unknown messages would be dropped", refuse=True),
    Internal(_HANDLER, "on_unknown_message on_unknown_task on_invalid_task",
             "worker/unprocessable.py",
             "malformed and unknown messages would be dropped", "uses", refuse=True),
    Internal("celery.worker.consumer.tasks:Tasks.start", "on_decode_error",
             "worker/unprocessable.py",
             "undecodable messages would be dropped", "uses", refuse=True),
    Internal(f"{_CONSUMER}.__init__", "on_close", "worker/celery_patches.py",
             "tasks would run twice after a lost connection", "uses"),
    Internal("celery.bootsteps:Blueprint.close", "on_close", "worker/celery_patches.py",
             "what was not started would be counted after a shutdown", "uses"),
    Internal(f"{_CONSUMER}.connect", "connection_for_read", "worker/celery_patches.py",
             "connections would have no deadlines", "uses"),
    Internal(f"{_CONSUMER}.connection_for_read", "ensure_connected", "worker/celery_patches.py",
             "connections would have no deadlines", "uses"),
    Internal(_HANDLER, "ack_log_error reject_log_error "
             "_restore_prefetch_count_after_connection_restart", "worker/celery_patches.py",
             "in a solo pool an acknowledgement could come after the next body", "uses"),
    Internal("kombu.message:Message", "ack_log_error reject_log_error", "worker/celery_patches.py",
             "in a solo pool an acknowledgement could come after the next body"),
    Internal("celery.worker.request:Request", "on_failure on_retry on_timeout acknowledge cancel "
             "reject maybe_expire _announce_revoked execute_using_pool", "worker/request.py",
             "outcomes would be settled by stock Celery", refuse=True),
    Internal("celery.worker.request:create_request_cls.Request.on_success",
             "failed__retval__runtime", "worker/outcome.py",
             "successes would not be reported", "keeps"),
    Internal("celery.apps.worker:_shutdown_handler", "platforms signals", "worker/green_signals.py",
             "a gevent worker that is told to end could end with an error", "uses"),
    Internal("celery.worker.control:", "revoke terminate revoke_by_stamped_headers",
             "worker/revocation.py", "scheduled retries of revoked tasks would run"),
    Internal("celery.concurrency.prefork:TaskPool", "flush", "worker/jobs.py",
             "what runs while a connection is lost would stay unacknowledged", until=(5, 6)),
    Internal("billiard.pool:Pool", "_cache", "worker/jobs.py",
             "what runs while a connection is lost would stay unacknowledged"),
    # Brokers
    Internal("kombu.messaging:Consumer._basic_consume", "_active_tags", "worker/source_queue.py",
             "retries would go to the queue of their routing key", "uses", refuse=True),
    Internal("kombu.transport.virtual.base:Transport", "_deliver", "worker/source_queue.py",
             "retries would go to the queue of their routing key", refuse=True),
    Internal("kombu.transport.virtual.base:Channel.drain_events", "_deliver",
             "worker/source_queue.py",
             "retries would go to the queue of their routing key", "uses", refuse=True),
    Internal("kombu.transport.virtual.base:Message", "_raw", "messages/envelope.py",
             "copies would not be what was received", refuse=True),
    Internal(f"{_REDIS}QoS.append", "_raw unacked_key hset unacked_index_key zadd",
             "transport/fetch.lua", "what a dead consumer held would not be requeued",
             "uses", refuse=True),
    Internal(f"{_REDIS}QoS.restore_by_tag.restore_transaction", "M EX RK", "transport/fetch.lua",
             "what a dead consumer held would not be requeued", "keeps", refuse=True),
    Internal(f"{_REDIS}Channel._brpop_read", "_deliver", "worker/source_queue.py",
             "retries would go to the queue of their routing key", "uses", refuse=True),
    Internal("amqp.connection:Connection", "on_inbound_frame", "brokers/rabbitmq/pyamqp.py",
             "one unreadable message would end worker after worker"),
    Internal("amqp.connection:Connection.blocking_read", "on_inbound_frame",
             "brokers/rabbitmq/pyamqp.py",
             "one unreadable message would end worker after worker", "uses"),
    Internal("amqp.connection:Connection.drain_events", "blocking_read",
             "brokers/rabbitmq/greenlets.py",
             "a greenlet would wait for RabbitMQ for ever", "uses"),
    Internal("amqp.transport:_AbstractTransport.read_frame", "_read",
             "brokers/rabbitmq/greenlets.py",
             "a worker would hang on half a frame", "uses"),
    Internal("amqp.transport:TCPTransport._read", "n initial _errnos",
             "brokers/rabbitmq/greenlets.py",
             "a worker would hang on half a frame", "takes"),
    Internal("amqp.channel:Channel", "_basic_publish _callbacks", "brokers/rabbitmq/publisher.py",
             "retries and dead letters could not be published", refuse=True),
    Internal("amqp.channel:Channel._basic_publish", "exchange routing_key mandatory timeout",
             "brokers/rabbitmq/publisher.py",
             "retries and dead letters could not be published", "takes", refuse=True),
    Internal("amqp.basic_message:Message", "_serialize_properties", "brokers/rabbitmq/publisher.py",
             "retries and dead letters could not be published", refuse=True),
)  # fmt: skip


def refuse_changed_internals(c: Any) -> None:
    """Look at all that would fail in silence, before the consumer *c* takes its first message.

    Raises ImproperlyConfigured where messages would be lost; warns where a task may run twice.
    """
    c.conninfo.get_transport_cls()  # what is not loaded by now is not used
    found = list(changes(each for each in SILENT if _module_of(each) in sys.modules))
    refused = [text for each, text in found if each.refuse]
    for each, text in found:
        if not each.refuse:
            logger.warning("%s. %s", text, _way_out(each))
    if refused:
        first = next(each for each, _ in found if each.refuse)
        raise ImproperlyConfigured(
            f"{'; '.join(refused)}. {_way_out(first)}; with --no-resilience stock Celery decides"
        )


def changes(internals: Iterable[Internal]) -> Iterator[tuple[Internal, str]]:
    """Those of *internals* that are not what we know, and what that breaks, in a sentence."""
    for each in internals:
        if _is_meant(each) and (gone := [n for n in each.names.split() if not _is_there(each, n)]):
            what = _VERBS[each.kind].format(", ".join(gone))
            owner = each.owner.rstrip(":")
            yield each, f"{owner} {what} ({each.file} relies on it): {each.breaks}"


_VERBS = {
    "has": "has no {}",
    "takes": "takes no {}",
    "keeps": "has no variable {}",
    "uses": "does not use {}",
}


def _way_out(each: Internal) -> str:
    package = _module_of(each).partition(".")[0]
    version = ".".join(map(str, _version(package)))
    return (
        f"{package} {version} is not one that celery_resilience was tested with: install an older "
        "one, or a newer celery_resilience"
    )


def _module_of(each: Internal) -> str:
    return each.owner.partition(":")[0]


def _version(package: str) -> tuple[Any, ...]:
    return tuple(importlib.import_module(package).VERSION[:3])


def _is_meant(each: Internal) -> bool:
    """Whether the version that is installed is one that has it."""
    if not (each.since or each.until):
        return True
    version = _version(_module_of(each).partition(".")[0])
    return each.since <= version and (not each.until or version < each.until)


def _is_there(each: Internal, name: str) -> bool:
    if each.kind == "has":
        return _has(_owner(each.owner), name)
    if each.kind == "takes":
        return name in inspect.signature(_owner(each.owner)).parameters
    codes = _codes(each.owner)
    if codes is None:  # it was compiled to C: it is unknown
        return True
    if each.kind == "keeps":
        return any(name in (*c.co_varnames, *c.co_cellvars, *c.co_freevars) for c in codes[:1])
    return any(name in (*c.co_names, *c.co_freevars, *c.co_cellvars) for c in codes)


def _owner(path: str) -> Any:
    """The module, class or function that *path* names; None if there is none."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        found = inspect.getattr_static(found, part, None)
    return found


def _has(owner: Any, name: str) -> bool:
    """Whether *owner* has the attribute, or its objects are given it by a method of theirs."""
    if isinstance(owner, type):
        return any(name in vars(base) or name in _set_by(base) for base in owner.__mro__)
    return hasattr(owner, name)


@cache
def _set_by(cls: type) -> frozenset[str]:
    """What objects of *cls* are given: by slots, annotations, and what its methods set."""
    names = {*vars(cls).get("__slots__", ()), *vars(cls).get("__annotations__", ())}
    for function in vars(cls).values():
        code = getattr(function, "__code__", None)
        for each in () if code is None else dis.get_instructions(code):
            if each.opname == "STORE_ATTR":
                names.add(each.argval)
    return frozenset(names)


def _codes(path: str) -> list[CodeType] | None:
    """The code of the function that *path* names, and of those within it; none if it has gone.

    As its module's file has it: error trackers put functions of their own in its place.
    """
    module, _, name = path.partition(":")
    code = _code_of(module)
    if code is None:
        return None
    for part in name.split("."):
        code = next((c for c in _within(code) if c.co_name == part), None)
        if code is None:
            return []
    return [code, *_all_within(code)]


@cache
def _code_of(module: str) -> CodeType | None:
    spec = find_spec(module)
    loader: Any = spec and spec.loader
    code: CodeType | None = loader.get_code(module) if hasattr(loader, "get_code") else None
    return code


def _within(code: CodeType) -> Iterator[CodeType]:
    return (each for each in code.co_consts if isinstance(each, CodeType))


def _all_within(code: CodeType) -> Iterator[CodeType]:
    for each in _within(code):
        yield each
        yield from _all_within(each)
