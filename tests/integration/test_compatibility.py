"""Drop-in: the same task, on stock Celery and on ours, goes through the same things.

Every row is sent to three sides (see ``tests.apps.compat``) of one worker, and their stories are
compared: each start of a body with its arguments and ``request.retries``, each state stored, each
hook, signal, callback and errback with what it is given, and the final result. A row that
*differs* says why, and ``docs/differences.md`` says the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import celery
import pytest
from celery import chain, chord, group
from celery.exceptions import MaxRetriesExceededError

from tests.client import Client
from tests.servers import eventually
from tests.worker import ROOT, Broker, Worker

COMPAT = "tests.apps.compat"
SIDES = ("stock", "resilient", "installed")
Event = tuple[str, ...]


@dataclass(frozen=True)
class Differs:
    """How often each kind of event happens on either side, and why; the other kinds are equal."""

    why: str
    stock: Mapping[str, int] = field(default_factory=dict)
    ours: Mapping[str, int] = field(default_factory=dict)
    #: Kinds that are not compared.
    apart: tuple[str, ...] = ()
    #: The other kinds of events are not equal either.
    alone: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Sends it in another way: (client, side) -> None.
    send: Callable[[Client, str], Any] | None = None
    differs: Differs | None = None
    #: Whether it works in every pool; else in prefork alone.
    everywhere: bool = True
    #: Whether a failure of ours leaves a dead letter.
    letter: bool = True


# Ways to send a row


def sig(client: Client, task: str, *args: Any, **options: Any) -> Any:
    return client.app.signature(task, args=args, options=options, app=client.app)


def errbacks(client: Client, id_: str) -> list[Any]:
    """One of each kind: Celery sends what takes one argument, and calls what takes three."""
    by_name = client.app.signature("told.errback", kwargs={"id_": id_}, app=client.app)
    return [by_name, sig(client, "told.errback_here")]


def told(client: Client, id_: str) -> dict[str, Any]:
    """The callback and the errbacks."""
    return {"link": sig(client, "told.link", id_), "link_error": errbacks(client, id_)}


def send_chain(*failures: int) -> Callable[[Client, str], Any]:
    """flaky(failures), and then the others, each of which fails once first."""

    def send(client: Client, side: str) -> Any:
        row = f"chain_{'_'.join(map(str, failures))}"
        tasks = [
            sig(client, f"{side}.twice", failures[0], task_id=f"{side}|{row}|0"),
            sig(client, f"{side}.flaky_next", task_id=f"{side}|{row}|1"),
            sig(client, f"{side}.flaky_next", "last", task_id=f"{side}|{row}|2"),
        ]
        return chain(*tasks).apply_async(link_error=errbacks(client, f"{side}|{row}|0"))

    return send


def send_asking_chain(form: str) -> Callable[[Client, str], Any]:
    """asks(form), whose place in the chain must outlast the new message."""

    def send(client: Client, side: str) -> Any:
        row = f"chain_asks_{form}"
        tasks = [
            sig(client, f"{side}.asks", form, 2, task_id=f"{side}|{row}|0"),
            sig(client, f"{side}.flaky_next", task_id=f"{side}|{row}|1"),
        ]
        return chain(*tasks).apply_async(link_error=errbacks(client, f"{side}|{row}|0"))

    return send


def send_asking_chord(form: str) -> Callable[[Client, str], Any]:
    def send(client: Client, side: str) -> Any:
        row = f"chord_asks_{form}"
        header = [
            sig(client, f"{side}.asks", form, n, task_id=f"{side}|{row}|{n}") for n in range(3)
        ]
        return chord(header)(sig(client, f"{side}.flaky_next", task_id=f"{side}|{row}|body"))

    return send


def send_group(client: Client, side: str) -> Any:
    return group(
        sig(client, f"{side}.twice", n, task_id=f"{side}|group|{n}") for n in range(4)
    ).apply_async()


def send_chord(row: str, *failures: int, into: str = "flaky_next") -> Callable[[Client, str], Any]:
    def send(client: Client, side: str) -> Any:
        header = [
            sig(client, f"{side}.twice", n, task_id=f"{side}|{row}|{i}")
            for i, n in enumerate(failures)
        ]
        body = sig(client, f"{side}.{into}", task_id=f"{side}|{row}|body")
        for errback in errbacks(client, f"{side}|{row}|body"):
            body.on_error(errback)
        return chord(header)(body)

    return send


def same(task: str, *args: Any, name: str = "", **more: Any) -> Row:
    return Row(name or task, task, args, **more)


FRACTION = Differs("Fractions of a second are honoured", apart=("task_retry",))
NEVER_REJECT = Differs("`Reject` is never retried", {"body": 3}, {"body": 1}, alone=True)
CLASS = Differs(
    "`self.retry(exc=SomeError)` is `self.retry(exc=SomeError())`",
    {"task_internal_error": 2, "on_retry": 0}, {"task_internal_error": 0, "on_retry": 2},
    alone=True,
)  # fmt: skip
ONE_PLACE = Differs(
    "A body that asks for a retry and raises something else is retried only",
    {"body": 2, "on_failure": 1, "on_retry": 0}, {"body": 2, "on_failure": 0, "on_retry": 1},
    alone=True,
)  # fmt: skip
STAYS_UP = Differs(
    "A body that raises `SystemExit` does not take its process with it",
    {"stored": 1, "on_failure": 0},
    {"stored": 1, "on_failure": 1, "task_failure": 1, "errback of a name": 1}, alone=True,
)  # fmt: skip
ONCE = Differs(
    "A hard time limit is reported once",
    {"stored": 2, "errback of a name": 2},
    {"stored": 1, "on_failure": 1, "after_return": 1, "task_failure": 1, "errback of a name": 1},
    alone=True,
)  # fmt: skip
UNSENT = Differs(
    "A `Retry` that was never sent is a retry",
    {"body": 1, "on_retry": 1, "on_failure": 0}, {"body": 2, "on_retry": 1}, alone=True,
)  # fmt: skip
#: Older versions of Celery change at a retry whether the result is ignored; the message does not.
IGNORED = Differs("", apart=("stored",)) if celery.VERSION < (5, 7) else None

ROWS = [
    # what is retried, and how often
    same("states_nothing", 0, name="succeeds"),
    same("states_nothing", 1),
    same("autoretry", 2),
    same("autoretry", 2, "SmallFlop", name="autoretry_of_a_subclass"),
    same("autoretry", 9, name="autoretry_used_up"),
    same("autoretry", 1, "KeyError", name="autoretry_not_for_this"),
    same("dont", 1),
    same("dont", 1, "SmallFlop", name="dont_for_this"),
    same("never", 1),
    same("no_limit", 6),
    same("twice", 2),
    same("twice", 9, name="twice_used_up"),
    same("kwargs_limit", 9),
    same("kwargs_countdown", 1),
    same("kwargs_queue", 9),
    same("kwargs_args", 1),
    same("delay", 2),
    same("backoff_true", 1),
    same("backoff_jitter", 1),
    same("backoff_number", 1),
    same("backoff_max", 1),
    same("backoff_fraction", 1, differs=FRACTION),
    same("throws", 1, letter=False),
    same("throws_and_retries", 9),
    same("annotated", 9),
    same("ignored_result", 9, differs=IGNORED),
    same("ignored_result", 1, name="ignored_result_done", differs=IGNORED),
    same("errors_even_if_ignored", 9, differs=IGNORED),
    same("tracked", 1),
    same("rate_limited", 1),
    same("shadowed", 1, options={"shadow": "another.name"}),
    same("twice", 1, name="ignored_by_the_caller", options={"ignore_result": True},
         differs=IGNORED),
    same("twice", 1, name="with_keywords", kwargs={"tenant": "acme"}),
    same("acks_early", 1),
    same("acks_early", 9, name="acks_early_used_up"),
    # how tasks are made
    same("ours_first", 9),
    same("django", 1),
    same("calls_itself", 1),
    same("calls_super", 1),
    same("request", 9),
    same("request_name", 1),
    same("by_class", 9),
    same("shared", 9),
    same("pydantic", {"number": 7, "failures": 1}),
    same("pydantic", {"number": "x"}, name="pydantic_invalid"),
    same("bare", 1),
    same("twice", name="wrong_arguments", kwargs={"failures": 0, "error": "KeyError", "self": 1}),
    # self.retry
    *(same("asks", form, 2, name=f"asks_{form}") for form in (
        "plain", "exc", "args", "kwargs", "args_and_kwargs", "no_kwargs", "countdown",
        "countdown_zero", "eta", "eta_text", "eta_past", "eta_naive", "eta_and_countdown",
        "limit", "limit_and_exc", "limit_zero", "queue", "routing_key", "headers", "options",
        "positional", "exc_text",
    )),
    same("asks", "exc_class", 2, name="asks_exc_class", differs=CLASS),
    *(same("asks", form, 9, name=f"asks_{form}_used_up") for form in (
        "plain", "exc", "args", "kwargs", "limit_higher", "queue",
    )),
    same("asks", "kwargs", 1, name="asks_kwargs_beside_kwargs", kwargs={"other": 1}),
    same("asks_without_limit", "plain", 5),
    same("asks_never", "plain", 1),
    same("asks_never", "limit_higher", 3, name="asks_never_but_here"),
    same("asks_by_celerys", 1),
    same("asks_by_celerys", 9, name="asks_by_celerys_used_up"),
    same("calls", "exc", name="calls_what_asks_with_an_error"),
    same("calls", differs=UNSENT),
    same("applies", 1),
    same("applies", 9, name="applies_used_up"),
    same("raises_a_retry", differs=UNSENT),
    same("raises_a_retry", 0.1, name="raises_a_retry_soon", differs=UNSENT),
    same("asks_within", 1),
    same("asks_within", 9, name="asks_within_used_up"),
    same("asks_and_autoretries", "then_returns"),
    same("asks_and_autoretries", "then_asks", name="asks_and_autoretries_used_up"),
    same("catches", "returns", name="catches_and_returns"),
    same("catches", "raises_it_anew", name="catches_and_raises_it_anew"),
    same("catches", "ignores", name="catches_and_ignores"),
    same("catches", "raises", name="catches_and_raises", differs=ONE_PLACE),
    *(same("catches_control_flow", how, name=f"catches_what_{how}") for how in (
        "ignores", "rejects", "replaces",
    )),
    # what the owner's own wrapper of the body catches
    *(same("caught", how, name=f"caught_{how}") for how in (
        "ignores", "rejects", "replaces", "raises_a_retry", "fails", "plain", "exc", "headers",
        "queue", "eta_past",
    )),
    *(same("caught", how, name=f"caught_{how}_ignored", kwargs={"then": "ignores"}) for how in (
        "fails", "plain", "queue",
    )),
    same("caught_autoretry", 1),
    same("caught_autoretry", 9, name="caught_autoretry_used_up"),
    same("caught_autoretry", 1, name="caught_autoretry_ignored", kwargs={"then": "ignores"}),
    same("caught_kwargs_queue", 1),
    same("decorated"),
    same("goes_on", "returns", name="goes_on_and_returns"),
    same("goes_on", "raises", name="goes_on_and_raises", letter=False),
    same("goes_on", "raises_it", name="goes_on_and_raises_it"),
    # control flow, limits, what is no Exception
    same("ignores"),
    same("replaces"),
    same("rejects", True, name="rejects_and_requeues"),
    same("rejects", False),
    same("rejects_with_autoretry", False, differs=NEVER_REJECT),
    same("sleeps", True, name="soft_limit_caught", options={"soft_time_limit": 1},
         everywhere=False),
    same("sleeps", name="soft_limit", options={"soft_time_limit": 1}, everywhere=False),
    same("sleeps_twice", name="soft_limit_retried", options={"soft_time_limit": 1},
         everywhere=False),
    same("sleeps", name="hard_limit", options={"time_limit": 1}, everywhere=False,
         differs=ONCE),
    same("exits", everywhere=False, differs=STAYS_UP),
    same("result_not_json"),
    # canvas
    Row("chain_1_1_1", "chain", send=send_chain(1, 1, 1)),
    Row("chain_9_1_1", "chain", send=send_chain(9, 1, 1)),
    *(Row(f"chain_asks_{form}", "chain", send=send_asking_chain(form)) for form in (
        "plain", "kwargs", "queue",
    )),
    Row("chord_asks_plain", "chord", send=send_asking_chord("plain")),
    Row("chord_asks_kwargs", "chord", send=send_asking_chord("kwargs")),
    Row("group", "group", send=send_group),
    Row("chord", "chord", send=send_chord("chord", 0, 1, 2)),
    Row("chord_failed", "chord", send=send_chord("chord_failed", 0, 9, 1)),
    Row("chord_body_failed", "chord", send=send_chord("chord_body_failed", 0, into="autoretry")),
]  # fmt: skip


def events(client: Client) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Side, row and what happened, of every line of the record that belongs to a row."""
    for line in client.lines():
        id_, *event = json.loads(line)
        if id_ and id_.count("|") == 2:
            side, row, number = id_.split("|")
            yield side, row, (number, *(json.dumps(word) for word in event))


def stories(client: Client) -> dict[tuple[str, str], Counter[Event]]:
    """What has happened, by row and side, in no order: processes write side by side."""
    found: defaultdict[tuple[str, str], Counter[Event]] = defaultdict(Counter)
    for side, row, event in events(client):
        found[row, side][tuple(word.replace(f"{side}|", "|") for word in event)] += 1
    return found


def unlike(row: Row, stock: Counter[Event], ours: Counter[Event]) -> list[str]:
    """What is not as it should be, a line each."""
    kinds = (count(stock), count(ours))
    differs = row.differs or Differs("")
    lines = [
        f"{row.name}: {kind} {found[kind]} times on {side}, {wanted} were expected"
        for side, found, expected in zip(
            ("stock", "ours"), kinds, (differs.stock, differs.ours), strict=True
        )
        for kind, wanted in expected.items()
        if found[kind] != wanted
    ]
    if differs.alone:
        return lines
    named = {*differs.stock, *differs.ours, *differs.apart}
    lines += [f"{row.name}: only stock  {n} x {e}" for e, n in (stock - ours).items()
              if kind_of(e) not in named]  # fmt: skip
    lines += [f"{row.name}: only ours   {n} x {e}" for e, n in (ours - stock).items()
              if kind_of(e) not in named]  # fmt: skip
    return lines


def kind_of(event: Event) -> str:
    return str(json.loads(event[1]))


def count(story: Counter[Event]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for event, times in story.items():
        kinds[kind_of(event)] += times
    return kinds


def send(client: Client, row: Row) -> None:
    for side in SIDES:
        if row.send is not None:
            row.send(client, side)
            continue
        id_ = f"{side}|{row.name}|0"
        client.app.send_task(
            f"{side}.{row.task}", row.args, row.kwargs, task_id=id_, **told(client, id_),
            **row.options,
        )  # fmt: skip


def problems(client: Client, rows: list[Row]) -> list[str]:
    found = stories(client)
    lines = []
    for row in rows:
        stock = found[row.name, "stock"]
        if not stock:
            lines.append(f"{row.name}: nothing has happened yet")
        for side in SIDES[1:]:
            lines += [f"{side}: {line}" for line in unlike(row, stock, found[row.name, side])]
    return lines


#: Rows in which ours publish a new message, as Celery does it.
NEW_MESSAGE = re.compile(
    r".*asks_(args|kwargs|no_kwargs|queue|routing_key|headers|options|positional|by_celerys)"
    r"|goes_on|catches|kwargs_(args|queue)"
)


def wrong_ends(client: Client, rows: list[Row]) -> list[str]:
    """What a caller is told in the end: the state, and the result or the error.

    Celery publishes a retry and then stores RETRY, which may come after the end of the next
    attempt: where it does so itself, that is no end to compare.
    """
    ends: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for side, name, (number, *_) in set(events(client)):
        end = client.app.backend.get_task_meta(f"{side}|{name}|{number}")
        result = end["result"]
        # Its words differ, as the docs say.
        words = "" if isinstance(result, MaxRetriesExceededError) else repr(result)
        ends[name, side][number] = f"{end['status']} {type(result).__name__} {words}".replace(
            f"{side}|", "|"
        )
    lines = []
    for row in rows:
        differs = row.differs or Differs("")
        for side in () if differs.alone else SIDES[1:]:
            for number, stock in ends[row.name, "stock"].items():
                ours = ends[row.name, side].get(number, "nothing")
                if ours.startswith("RETRY"):
                    is_wrong = not NEW_MESSAGE.match(row.name)
                else:
                    open_ = stock.startswith("RETRY") or "stored" in differs.apart
                    is_wrong = ours != stock and not open_
                if is_wrong:
                    lines.append(f"{side}: {row.name} {number} ends in {ours}, stock in {stock}")
    return lines


def wrong_letters(client: Client, rows: list[Row]) -> list[str]:
    """Ours leave one dead letter for each failure that is told, and none for others."""
    without = {row.name for row in rows if not row.letter}
    wanted = set()
    for side, row, event in events(client):
        # Before 5.7 Celery tells nobody that a message was rejected.
        rejected = kind_of(event) == "body" and row in ("rejects", "rejects_with_autoretry")
        failed = (kind_of(event) == "task_failure" and event[0] != "eager") or rejected
        if failed and side != "stock" and row not in without:
            wanted.add(f"{side}|{row}|{event[0]}")
    found = Counter(letter.envelope.fields()["id"] for letter in client.letters())
    return [
        f"{id_}: {found[id_]} letters" for id_ in {*wanted, *found} if found[id_] != (id_ in wanted)
    ]


def names_in(client: Client, queue: str) -> list[str]:
    """The tasks of the messages that lie in *queue*, which is emptied."""
    found = []
    with client.app.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(queue)) is not None:
            message = channel.message_to_python(message) if isinstance(message, dict) else message
            found.append(str((message.headers or {}).get("task", "")))
            channel.basic_ack(message.delivery_tag)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("broker", "pool"),
    [
        ("redis", "prefork"), ("redis", "threads"), ("redis", "solo"), ("redis", "gevent"),
        ("rabbitmq-classic", "prefork"), ("rabbitmq-quorum", "threads"),
    ],
    indirect=["broker"],
)  # fmt: skip
def test_task_goes_through_the_same_on_ours_as_on_stock_celery(
    broker: Broker, pool: str, client: Client, start_worker: Callable[..., Worker]
) -> None:
    rows = [row for row in ROWS if row.everywhere or pool == "prefork"]
    worker = start_worker(
        COMPAT, broker, pool=pool, concurrency=4, queues="shop,other", env=client.env
    )
    for row in rows:
        send(client, row)
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 30:  # as long as something happens, however slowly
        if (lines := len(client.lines())) != before:
            before, since = lines, time.monotonic()
        elif not problems(client, rows):
            break
        time.sleep(1)
    unequal = problems(client, rows)
    unequal = unequal or [*wrong_ends(client, rows), *wrong_letters(client, rows)]
    assert not unequal, "\n".join(unequal)
    assert worker.terminate() == 0
    assert names_in(client, "shop") + names_in(client, "other") == []


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_so_it_does_applied_eagerly_and_called_as_a_function(
    broker: Broker, client: Client
) -> None:
    """With and without ``task_eager_propagates``; each row, canvas included, in one process."""
    environment = {
        **os.environ, **client.env, "PYTHONPATH": str(ROOT),
        "BROKER_URL": broker.broker_url, "BACKEND_URL": broker.backend_url,
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.apps.eagerly"]
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=60)
    names = {row for _, row, _ in events(client)}
    rows = [replace(row, name=name) for row in ROWS for name in names
            if name.partition("/")[0] == row.name]  # fmt: skip
    assert len(rows) > 3 * 80
    unequal = problems(client, rows)
    assert not unequal, "\n".join(unequal)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_task_that_is_terminated_is_revoked_and_that_is_all(
    broker: Broker, client: Client, start_worker: Callable[..., Worker]
) -> None:
    """Its process is told to exit; that is not an error of the body's."""
    start_worker(COMPAT, broker, concurrency=3, env=client.env)
    ids = [f"{side}|terminated|0" for side in SIDES]
    for side, id_ in zip(SIDES, ids, strict=True):
        client.app.send_task(f"{side}.sleeps", task_id=id_)
    eventually(lambda: [kind_of(event) for _, _, event in events(client)].count("body") == 3)
    client.app.control.revoke(ids, terminate=True)
    eventually(
        lambda: {client.app.backend.get_task_meta(id_)["status"] for id_ in ids} == {"REVOKED"}
    )
    client.value(client.app.send_task("installed.states_nothing", task_id="installed|after|0"))
    states = {
        side: [event for who, row, event in events(client)
               if (who, row, kind_of(event)) == (side, "terminated", "stored")]
        for side in SIDES
    }  # fmt: skip
    assert {event[2] for event in states["stock"]} == {'"REVOKED"'}
    assert states["stock"] == states["resilient"] == states["installed"], "5.6 stores it twice"
    assert client.count("dead_letter") == 0


def test_docs_list_what_differs_and_why() -> None:
    """Every difference that a row shows is a heading of the page."""
    page = (ROOT / "docs" / "differences.md").read_text()
    headings = {line.lstrip("# ") for line in page.splitlines() if line.startswith("## ")}
    assert {row.differs.why for row in ROWS if row.differs and row.differs.why} <= headings
