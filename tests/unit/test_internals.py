"""What is private in Celery, kombu, billiard, py-amqp and redis-py is what this package takes it
for, and all that is touched of it is on the list in ``internals.py``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from celery.worker.consumer.consumer import Consumer

import celery_resilience
from celery_resilience.worker.bootstep import ResilienceStep
from celery_resilience.worker.internals import SILENT, Internal, changes, refuse_changed_internals
from tests.unit.internals import ALL

PACKAGE = Path(celery_resilience.__file__).parent
FOREIGN = {"celery", "kombu", "billiard", "amqp", "redis", "vine"}


def found(each: Internal) -> list[str]:
    return [text for _, text in changes([each])]


# The list is true


@pytest.mark.parametrize("each", ALL, ids=lambda each: f"{each.file}-{each.owner}-{each.kind}")
def test_internal_is_as_we_know_it(each: Internal) -> None:
    assert found(each) == []


def test_change_of_an_internal_is_noticed_and_says_what_breaks() -> None:
    for each in ALL:
        assert (PACKAGE / each.file).is_file()
        for name in each.names.split():
            (text,) = found(replace(each, names=f"{name}_renamed", since=(), until=()))
            assert f"{name}_renamed ({each.file} relies on it): {each.breaks}" in text


# A worker looks at what would fail in silence


def consumer() -> Any:
    return SimpleNamespace(conninfo=SimpleNamespace(get_transport_cls=lambda: None))


def test_worker_starts_with_the_supported_versions(caplog: pytest.LogCaptureFixture) -> None:
    refuse_changed_internals(consumer())
    assert caplog.records == []


@pytest.mark.parametrize("name", ["on_unknown_task", "create_task_handler"])
def test_worker_refuses_to_start_where_messages_would_be_lost(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(Consumer, name)
    with pytest.raises(ImproperlyConfigured) as refused:
        refuse_changed_internals(consumer())
    said = str(refused.value)
    assert f"Consumer has no {name} (worker/unprocessable.py relies on it)" in said
    assert "malformed and unknown messages would be dropped" in said
    assert "install an older one, or a newer celery_resilience; with --no-resilience" in said


def test_worker_that_is_made_looks_at_the_internals(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("internals", broker="memory://", set_as_current=False)
    made = SimpleNamespace(app=app, pool=None, hub=None, conninfo=app.connection_for_read())
    monkeypatch.delattr(Consumer, "on_invalid_task")
    with pytest.raises(ImproperlyConfigured, match="has no on_invalid_task"):
        ResilienceStep(made)
    app.conf.resilience_enabled = False
    gone_on = Mock(side_effect=StopIteration)
    monkeypatch.setattr("celery_resilience.worker.bootstep.disable", gone_on)
    with pytest.raises(StopIteration):
        ResilienceStep(made)


def test_worker_warns_where_a_task_may_run_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from billiard import common

    monkeypatch.delattr(common, "_shutdown_cleanup")
    with caplog.at_level(logging.WARNING, "celery_resilience"):
        refuse_changed_internals(consumer())
    (record,) = caplog.records
    assert (
        "billiard.common has no _shutdown_cleanup (classify/foreign.py relies on it)"
        in record.message
    )


def test_module_that_no_worker_has_loaded_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "celery_resilience.worker.internals.SILENT",
        (
            Internal(
                "celery.contrib.not_there:x", "y", "worker/unprocessable.py", "nothing", refuse=True
            ),
        ),
    )
    refuse_changed_internals(consumer())


def test_function_in_the_place_of_celerys_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Error trackers replace build_tracer: what Celery's own has is in its file."""
    monkeypatch.setattr("celery.app.trace.build_tracer", lambda name, task, **options: None)
    (each,) = [each for each in SILENT if each.names == "state retval"]
    assert found(each) == []


def test_unacked_hash_has_kombus_format() -> None:
    """Our script writes what kombu's restores."""
    from kombu.transport import redis
    from kombu.utils.json import loads

    written: dict[str, Any] = {}

    class Pipe:
        def zadd(self, key: str, scores: Any) -> Any:
            written[key] = scores
            return self

        def hset(self, key: str, tag: str, value: str) -> Any:
            written[key] = tag, value
            return self

        def execute(self) -> None: ...

    class Kept(redis.QoS):
        unacked_key, unacked_index_key = "unacked", "unacked_index"
        restore_at_shutdown = False

        def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Any:
            from contextlib import nullcontext

            return nullcontext(Pipe())

    message = SimpleNamespace(
        _raw={"body": "x"}, delivery_info={"exchange": "e", "routing_key": "k"}
    )
    qos = Kept(SimpleNamespace())
    qos.append(message, "tag")
    assert (written["unacked"][0], loads(written["unacked"][1])) == (
        "tag",
        [{"body": "x"}, "e", "k"],
    )
    assert list(written["unacked_index"]) == ["tag"]


# The list is complete


TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
LISTED: dict[str, set[str]] = {}
for _each in ALL:
    LISTED.setdefault(_each.file, set()).update(_each.names.split())
#: Names that are somebody else's wherever they stand, unless OURS says otherwise.
FOREIGN_NAMES = {
    name for each in ALL if each.kind in ("has", "uses") for name in each.names.split()
}
#: What looks like somebody else's and is not: ours, the standard library's, an error tracker's.
OURS = {
    "task/requested_retry.py": {"_nr_ignored"},  # what New Relic looks for
    "brokers/rabbitmq/pyamqp.py": {"_sock"},  # gevent's socket
    "brokers/redis/lease_qos.py": {"take"},  # on messages that our lease owner has
    "messages/changed.py": {"_getframe"},
    "task/async_body.py": {"_get_running_loop"},
    "install.py": {"_getframe"},
}
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "getattr_static"}


def is_private(name: str) -> bool:
    is_pythons = name.startswith("__") and name.endswith("__") and name != "__trace__"
    return name.startswith("_") and not is_pythons


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def own_names() -> set[str]:
    """What our package defines: functions, classes, variables, fields, attributes of ``self``."""
    names = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if is_self(node.value):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def touched(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Private names, and attributes of other objects that are set: name, line, whether of self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = is_self(node.value)
            sets = not isinstance(node.ctx, ast.Load) and not of_self
            is_pythons = node.attr.startswith("__") and node.attr != "__trace__"
            if is_private(node.attr) or (sets and not is_pythons):
                yield node.attr, node.lineno, of_self
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            function, name = node.func, node.args[1]
            called = getattr(function, "id", getattr(function, "attr", ""))
            if (
                called in _BY_NAME
                and isinstance(name, ast.Constant)
                and is_private(str(name.value))
            ):
                yield str(name.value), node.lineno, is_self(node.args[0])
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] not in FOREIGN:
                continue
            for each in node.names:
                if is_private(each.name) and each.name != "_state":
                    yield each.name, node.lineno, False


OWN_NAMES = own_names()


def unlisted(file: str, tree: ast.Module) -> list[str]:
    known = LISTED.get(file, set()) | OURS.get(file, set())
    return [
        f"{file}:{line}: {name}"
        for name, line, of_self in touched(tree)
        if name not in known and not (name in OWN_NAMES and (of_self or name not in FOREIGN_NAMES))
    ]


@pytest.mark.parametrize("file", TREES)
def test_everything_private_that_a_file_touches_is_on_the_list(file: str) -> None:
    assert unlisted(file, TREES[file]) == [], "put it into tests/unit/internals.py"


@pytest.mark.parametrize(
    "code",
    [
        "request._task",  # on the list for other files
        "connection._never_heard_of",
        "getattr(channel, '_never_heard_of', None)",
        "consumer.never_heard_of = 1",
        "from celery.app.trace import _never_heard_of",
        "class C(D):\n    def f(self):\n        self._never_heard_of()",
    ],
)
def test_private_name_that_is_not_listed_is_noticed(code: str) -> None:
    assert len(unlisted("worker/pause.py", ast.parse(code))) == 1


#: What users import too.
DOCUMENTED = {
    *FOREIGN, "amqp.exceptions", "billiard.exceptions", "celery.app.task", "celery.bootsteps",
    "celery.exceptions", "celery.signals", "celery.states", "celery.utils.log", "kombu.common",
    "kombu.exceptions", "redis.exceptions",
}  # fmt: skip


def imported(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """What comes from modules that users do not import: module, name, line."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.partition(".")[0] not in FOREIGN:
            continue
        for each in node.names:
            module = f"{node.module}.{each.name}"
            if is_module(module):
                modules[each.asname or each.name] = module
            elif node.module not in DOCUMENTED:
                yield node.module, each.name, node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id, "")
            if module and module not in DOCUMENTED and not node.attr.startswith("__"):
                yield module, node.attr, node.lineno


@cache
def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, and no package
        return False


def unlisted_imports(file: str, tree: ast.Module) -> list[str]:
    return [
        f"{file}:{line}: {module}:{name}"
        for module, name, line in imported(tree)
        if name not in LISTED.get(file, ())
    ]


@pytest.mark.parametrize("file", TREES)
def test_everything_undocumented_that_a_file_imports_is_on_the_list(file: str) -> None:
    assert unlisted_imports(file, TREES[file]) == [], "put it into internals_imported.py"


@pytest.mark.parametrize(
    ("code", "number"),
    [
        ("from celery.utils.functional import maybe_list", 1),
        ("from celery.worker import state\nstate.requests\nstate.total_count", 2),
        ("from kombu.transport import redis as theirs\ntheirs.Mutex", 1),
        ("from celery import signals, Task\nsignals.task_prerun", 0),
        ("from celery.exceptions import Reject", 0),
    ],
)
def test_undocumented_import_that_is_not_listed_is_noticed(code: str, number: int) -> None:
    assert len(unlisted_imports("worker/pause.py", ast.parse(code))) == number


def test_exceptions_of_the_list_are_all_used() -> None:
    for file, names in OURS.items():
        assert names <= {name for name, _, _ in touched(TREES[file])}, file


def our_subclasses() -> Iterator[tuple[str, type, list[type]]]:
    """Our classes with bases of those packages, and these bases."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "celery_resilience."):
        if module.name.startswith(("celery_resilience.demo", "celery_resilience.cli")):
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and cls.__module__ == module.name:
                bases = [b for b in cls.__mro__ if b.__module__.partition(".")[0] in FOREIGN]
                if bases:
                    path = Path(inspect.getfile(cls)).relative_to(PACKAGE).as_posix()
                    yield path, cls, bases


def overridden() -> Iterator[tuple[str, type, str, Any]]:
    for file, cls, bases in our_subclasses():
        for name in vars(cls):
            if name.startswith("__") and name != "__trace__":
                continue
            for base in bases:
                if name in vars(base):
                    yield file, cls, name, vars(base)[name]
                    break


OVERRIDDEN = list(overridden())


def test_every_override_is_on_the_list() -> None:
    missing = [f"{f}: {c.__name__}.{n}" for f, c, n, _ in OVERRIDDEN if n not in LISTED.get(f, ())]
    assert missing == []
    assert len(OVERRIDDEN) > 40


@pytest.mark.parametrize(
    ("cls", "name", "theirs"),
    [
        pytest.param(cls, name, theirs, id=f"{cls.__name__}.{name}")
        for _, cls, name, theirs in OVERRIDDEN
        if inspect.isfunction(theirs) and inspect.isfunction(vars(cls)[name])
    ],
)
def test_override_takes_whatever_the_overridden_takes(cls: type, name: str, theirs: Any) -> None:
    ours = inspect.signature(vars(cls)[name]).parameters.values()
    kinds, named = [each.kind for each in ours], {each.name for each in ours}
    for n, each in enumerate(inspect.signature(theirs).parameters.values()):
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        is_taken = each.name in named or each.VAR_KEYWORD in kinds
        if each.default is each.empty:  # given by its place
            is_taken = is_taken or n < len(kinds) or each.VAR_POSITIONAL in kinds
        assert is_taken, each


def test_every_file_that_reads_frames_says_of_what() -> None:
    for file, tree in TREES.items():
        reads = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in ("f_locals", "co_freevars", "co_name")
        }
        if reads and file not in (
            "worker/internals.py",
            "policy/callables.py",
            "messages/error_record.py",
        ):
            assert file in LISTED, f"{file} reads {reads}"
