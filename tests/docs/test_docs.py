"""The documentation is true: its code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from celery import Celery, _state
from celery.bin.base import CLIContext
from celery.bin.worker import worker
from click.testing import CliRunner
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

import celery_resilience
from celery_resilience.cli.dlq import dlq
from celery_resilience.cli.resilience import resilience
from celery_resilience.cli.retries import retries
from celery_resilience.messages.context import RetryContext
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import Attempt, History, Succeeded
from celery_resilience.policy.decision import Reason
from celery_resilience.settings import PREFIX, Settings
from celery_resilience.worker.flags import _flags
from tests.faults.__main__ import words as faults_words
from tests.faults.soak import words as soak_words
from tests.worker import Broker

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Pages whose code and commands are for a user of the package.
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
#: What is shown on that page as a mistake is no code to run.
RUN = [page for page in PAGES if page.name != "differences.md"]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("benchmarks/*.md"))]
LINKED += sorted(ROOT.glob("examples/**/*.md"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _one_page_does_not_know_the_others_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "80")
    finalizers, current = set(_state._on_app_finalizers), _state._tls.current_app
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(finalizers)
    _state._tls.current_app = current


# Code and commands


def commands(console: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command of a console block, and what the block says that it prints."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        for one in re.split(r"\|\||&&", command):
            yield shlex.split(one, comments=True), printed


def run_console(example: Example) -> None:
    for words, printed in commands(example.parsed):
        if words[:1] == ["celery"]:
            group, arguments = words[3], words[4:]
            assert words[1:3] == ["-A", "shop"], f"which app is {words[2]}?"
            if group == "retries" or arguments[:1] == ["doctor"]:
                called = {"retries": retries, "resilience": resilience}[group]
                context = CLIContext(
                    example.namespace["shop_on_redis"](), no_color=True, workdir="."
                )
                said = CliRunner().invoke(called, arguments, obj=context)
                assert said.exit_code == 0, said.output
                assert_shown(said.output, printed)
            elif group == "resilience":
                explained = explain(example.namespace["app"], arguments)
                assert_shown(explained, printed)
            elif group == "dlq":
                with dlq.make_context("dlq", arguments[:1]) as above:
                    dlq.commands[arguments[0]].make_context(arguments[0], arguments[1:], above)
            else:
                assert group == "worker"
                known = {name for option in worker.params for name in option.opts}
                known |= {option.opts[0] for option in _flags()}
                named = {word for word in arguments if word.startswith("-")}
                assert named <= known


def assert_shown(said: str, printed: str) -> None:
    """What is printed is what it said; a line of three dots stands for any that are left out."""
    if printed:
        parts = [" ".join(part.split()) for part in re.split(r"^\.\.\.$", printed, flags=re.M)]
        pattern = r"\s.*".join(map(re.escape, parts))
        assert re.fullmatch(pattern, " ".join(said.split()) + " " * printed.endswith("...\n")), said


def explain(app: Any, arguments: list[str]) -> str:
    context = CLIContext(app, no_color=True, workdir=".")
    result = CliRunner().invoke(resilience, arguments, obj=context)
    assert result.exit_code == 0, result.output
    return result.output


SYBIL = Sybil([PythonCodeBlockParser(), CodeBlockParser("console", run_console)], path=str(ROOT))


@pytest.fixture
def shop_on_redis(redis_broker: Broker) -> Iterator[Celery]:
    """The shop of the pages, three of whose tasks have failed and wait."""
    app = Celery("shop", broker=redis_broker.broker_url, set_as_current=False)
    app.conf.task_default_queue = "shop"
    slow, away = ("requests.Timeout", "too slow"), ("OSError", "mail is away")
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for begin, task, queue, minutes, tries, (error, message) in (
            ("c01d9e2a", "mail.send", "mail", 2.9, 1, away),
            ("3f9a2c10", "shop.charge", "shop", 9.9, 2, slow),
            ("5b0e77d4", "shop.charge", "shop", 35.9, 2, slow),
        ):
            history = History()
            for number in range(1, tries + 1):
                at = time.time() - 900 + 300 * number
                history = history.add(
                    Attempt(number, at, 0.5, "w@1", error, message, "transient", "r", 300.0)
                )
            headers = {
                "task": task, "id": f"{begin}-0000-4000-8000-000000000000", "retries": tries,
                "argsrepr": "(42,)", "kwargsrepr": "{}", HEADER: history.dumps(),
            }  # fmt: skip
            body = b"[[42], {}, {}]"
            envelope = Envelope(body, "application/json", "utf-8", headers, queue=queue)
            due = time.time() + 60 * minutes
            payload = json.dumps(envelope.to_wire(begin, queue))
            channel.client.zadd(f"celery_resilience:waiting:{queue}", {payload: due})
            channel.client.zadd("celery_resilience:waiting", {queue: due}, lt=True)
    yield app
    app.close()


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_code_of_a_page_runs_and_commands_print_what_it_shows(
    page: Path, request: pytest.FixtureRequest
) -> None:
    document = SYBIL.parse(page)
    document.namespace.update(
        __name__="shop",
        PAGE=str(page),
        app=Celery("any", broker="memory://"),
        shop_on_redis=lambda: request.getfixturevalue("shop_on_redis"),
    )
    for example in document.examples():
        example.evaluate()


def test_wrong_example_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for wrong in (
        "```python\n>>> 1 + 1\n3\n```",
        "```python\nassert False\n```",
        "```console\n$ celery -A shop resilience explain KeyError\nKeyError is fine\n```",
        "```console\n$ celery -A shop resilience explain KeyErro\n```",
        "```console\n$ celery -A shop dlq shwo 3f9a\n```",
        "```console\n$ celery -A shop dlq ls --limt 3\n```",
        "```console\n$ celery -A shop worker --dead-letter-queues x\n```",
    ):
        page.write_text(wrong)
        document = SYBIL.parse(page)
        document.namespace["app"] = Celery("any", broker="memory://")
        (example,) = document.examples()
        with pytest.raises((Exception, click.exceptions.Exit)):
            example.evaluate()


def test_autoscaler_counts_what_the_page_says(shop_on_redis: Celery) -> None:
    """It takes LLEN of a list, and ZCARD of a sorted set."""
    page = (DOCS / "deployment.md").read_text(encoding="utf-8")
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    work, waiting = (
        t["metadata"]["listName"] for t in yaml.safe_load(manifest)["spec"]["triggers"]
    )
    with shop_on_redis.connection_for_write() as connection:
        connection.Producer().publish("", exchange="", routing_key="shop")
        client = connection.default_channel.client
        assert client.llen(work) == 1
        assert client.zcard(waiting) == 2


# Generated pages


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_what_the_generator_writes() -> None:
    generate = generator()
    for name in generate.PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        assert text == generate.generated(text), f"{name} is stale: run python docs/generate.py"


def test_parts_that_can_be_generated_are_all_there() -> None:
    generate = generator()
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in generate.PAGES)
    assert set(re.findall(r"<!-- generated: (\S+) -->", text)) == set(generate.PARTS)


# Completeness


def test_settings_and_flags_are_documented() -> None:
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    for field in fields(Settings):
        assert f"`{PREFIX}{field.name}`" in page
    for option in _flags():
        assert f"`{option.opts[0]}" in page
        assert option.help.partition("[setting: ")[2].rstrip("]") in page
        assert "CELERY_WORKER_" + option.opts[0][2:].upper().replace("-", "_") in page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documented_settings_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {PREFIX + field.name for field in fields(Settings)}
    assert set(re.findall(rf"(?<![\w.]){PREFIX}[a-z_]+", text)) <= known
    groups: list[Any] = [dlq, resilience, retries]
    params = [p for group in groups for c in group.commands.values() for p in c.params]
    options = {name for p in (*params, *dlq.params, *worker.params, *_flags()) for name in p.opts}
    for parser in (faults_words(), soak_words()):
        options |= {name for action in parser._actions for name in action.option_strings}
    elsewhere = {"--help", "--rm", "--check", "--extra"}
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert mentioned - options <= elsewhere


def test_public_names_are_documented() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [n for n in celery_resilience.__all__ if not re.search(rf"\b{n}\b", text)]
    assert missing == []


ROWS = [f"{letter}{n}" for letter, most in zip("ABCD", (12, 7, 9, 4), strict=True)
        for n in range(1, most + 1)]  # fmt: skip


def test_rows_of_the_four_systems_have_their_answer() -> None:
    page = (DOCS / "coming-from.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([A-D]\d+) \|", page, re.MULTILINE) == ROWS


def test_keys_of_the_header_are_documented() -> None:
    page = (DOCS / "decided-where.md").read_text(encoding="utf-8")
    context = RetryContext([{"page": 1}]).levels()
    attempt = Attempt(1, 0.0, 0.0, "celery@host", "ValueError", "", "unknown", "")
    history = History(attempts=(attempt,), context=tuple(context), succeeded=Succeeded("1"))
    received = Envelope(b"[[], {}, {}]", "application/json", "utf-8", {}, queue="celery")
    letter = DeadLetter.write(
        Reason.PERMANENT, received, history=history, error=ErrorRecord.of(ValueError())
    )
    header = json.loads(letter.to_envelope().headers[HEADER])
    keys = {*header, *header["letter"], *header["letter"]["error"], *header["attempts"][0]}
    keys |= {*header["succeeded"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


# Links


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no {path}"
        if anchor:
            found = anchors(target.read_text(encoding="utf-8"))
            assert anchor in found, f"{link}: {sorted(found)}"


def test_pages_are_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        moved = page.name == "operating.md"  # only says where its sections are now
        assert moved or page.name == "README.md" or f"({page.name})" in index


def test_names_of_the_glossary_are_in_the_code() -> None:
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    names = re.findall(r"\| `(\w+)` \|$", page, re.MULTILINE)
    assert len(names) > 10
    code = "".join(path.read_text("utf-8") for path in (ROOT / "celery_resilience").rglob("*.py"))
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
