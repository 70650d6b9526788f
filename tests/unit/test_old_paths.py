"""What 0.1.0 named by a path of its own is still found there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module

import pytest
from celery import Celery
from celery.backends.base import Backend
from celery.utils.imports import symbol_by_name

#: The paths that docs, a user's code or ``requires`` may name, and where the things are now.
MOVED = {
    "backoff:Backoff": "policy.backoff",
    "brokers:Broker": "brokers.base",
    "brokers.reach:reach": "brokers.connect",
    "classify.headers:DIALECTS": "classify.retry_after",
    "deadletters:DeadLetters": "operate.dead_letters",
    "embedded:EmbeddedServer": "testing.server",
    "filters:Filters": "messages.filters",
    "flags:add_flags": "worker.flags",
    "policy:Policy": "policy.policy",
    "policy_file:load": "task.policy_file",
    "redact:Redactor": "messages.redact",
    "request:ResilientRequest": "worker.request",
    "retries:Retries": "operate.retries",
    "task:ResilientTask": "task.base",
}
PLACES = {path.split(":")[0]: place for path, place in MOVED.items()}
PLACES["consumer"] = "worker.bootstep"
#: What has another name now.
RENAMED = {
    "consumer:ResilientConsumer": "ResilienceStep",
    "retries:WaitingRetry": "ScheduledRetry",
}
#: What never moves: it is named by what is stored, by settings, by URLs or by entry points.
KEPT = [
    "brokers:NotOurs",
    "brokers:TooLarge",
    "brokers:Unroutable",
    "brokers.delay:Refused",
    "brokers.reach:Unreachable",
    "classify:classify",
    "cli.dlq:dlq",
    "cli.resilience:resilience",
    "cli.retries:retries",
    "cli.standalone:main",
    "demo.app:app",
    "errors:TransientError",
    "ids:NoSuchId",
    "retries:NotListed",
    "settings:Settings",
    "transport:SecureTransport",
    "transport:SentinelTransport",
    "transport:Transport",
]
ERRORS = [
    path for path in KEPT if path.split(":")[0] in ("brokers", "brokers.delay", "brokers.reach")
] + ["ids:NoSuchId", "retries:NotListed", "errors:TransientError"]  # fmt: skip


@pytest.mark.parametrize("path", [*MOVED, *RENAMED])
def test_old_path_finds_what_has_moved_and_says_where_to(path: str) -> None:
    old, name = path.split(":")
    new = f"celery_resilience.{PLACES[old]}"
    now = RENAMED.get(path, name)
    with pytest.warns(DeprecationWarning, match=rf"{old}\.{name} has moved to {new}\.{now}"):
        found = symbol_by_name(f"celery_resilience.{path}")
    assert found is getattr(import_module(new), now)


def test_kept_paths_find_theirs_without_a_warning() -> None:
    """In a process of its own: the demo's app listens to workers from its import on."""
    look = (
        "import sys\n"
        "from celery.utils.imports import symbol_by_name\n"
        "for path in sys.argv[1:]:\n"
        "    print(path, symbol_by_name(f'celery_resilience.{path}') is not None)"
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", look, *KEPT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.splitlines() == [f"{path} True" for path in KEPT], told.stderr


@pytest.mark.parametrize("path", ERRORS)
def test_error_is_stored_by_its_path_of_old_and_read_again(path: str) -> None:
    module, name = path.split(":")
    cls = symbol_by_name(f"celery_resilience.{path}")
    error = cls("said")
    assert f"ccelery_resilience.{module}\n{name}\n".encode() in pickle.dumps(error, 0)
    assert type(pickle.loads(pickle.dumps(error))) is cls
    backend = Backend(Celery("errors", set_as_current=False))
    for protocol in ("json", "pickle"):
        backend.serializer = protocol
        assert type(backend.exception_to_python(backend.prepare_exception(error))) is cls


@pytest.mark.parametrize("statement", [
    "import celery_resilience.deadletters; celery_resilience.deadletters.DeadLetters",
    "from celery_resilience.deadletters import DeadLetters",
    "from celery_resilience import deadletters; deadletters.DeadLetters",
    "from celery_resilience.classify.headers import DIALECTS",
    "import celery_resilience.brokers.reach; celery_resilience.brokers.reach.reach",
    "from celery_resilience.policy import Policy",
])  # fmt: skip
def test_old_path_works_in_every_statement_and_warns_at_its_line(statement: str) -> None:
    told = subprocess.run(
        [sys.executable, "-W", "always:celery_resilience:DeprecationWarning", "-c", statement],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert told.startswith("<string>:1: DeprecationWarning: celery_resilience.")
    assert " has moved to celery_resilience." in told


@pytest.mark.parametrize("module", ["", ".deadletters", ".task"])
def test_name_that_a_module_never_had_is_not_found(module: str) -> None:
    with pytest.raises(AttributeError, match=f"celery_resilience{module}' has no attribute 'No'"):
        getattr(sys.modules[f"celery_resilience{module}"], "No")  # noqa: B009


def test_names_for_operators_are_imported_when_they_are_asked_for() -> None:
    look = (
        "import sys, celery_resilience as r\n"
        "print('celery_resilience.operate.dead_letters' in sys.modules)\n"
        "from celery_resilience import DeadLetters, Filters, Retries\n"
        "print(r.DeadLetters is DeadLetters, Retries.__module__, Filters.__module__)"
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", look], capture_output=True, text=True, check=True
    ).stdout
    assert told.split() == [
        "False", "True", "celery_resilience.operate.retries", "celery_resilience.messages.filters",
    ]  # fmt: skip
