"""The operator's TOML: what it means, and how it says where it is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience import Policy, on
from celery_resilience.task.policy_file import PolicyFile, line_of, load

GOOD = """\
[policies.remote-call]
max_retries = 8
backoff = 2
jitter = 0.2
max_elapsed = "unlimited"

[[policies.remote-call.rules]]
on = ["json.JSONDecodeError", "ConnectionError"]
action = "retry"
max_retries = 20

[[policies.remote-call.rules]]
on = "ValueError"
action = "dead_letter"
queue = "dead_values"

[[policies.remote-call.rules]]
on = "KeyError"
action = "discard"
why = "gone"

[policies.never]
max_retries = 0
unmatched = "give_up"

[tasks]
"shop.charge" = "remote-call"
"*remote*" = "remote-call"
"cron.*" = "shared"
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PolicyFile]:
    monkeypatch.chdir(tmp_path)

    def read(text: str) -> PolicyFile:
        Path("ops.toml").write_bytes(text.encode())
        return load("ops.toml", {"shared": Policy()})

    return read


def test_file_means_the_same_as_the_code(read):
    from json import JSONDecodeError

    file = read(GOOD)
    assert file.policies["remote-call"] == Policy(
        on(JSONDecodeError, ConnectionError).retry(max_retries=20),
        on(ValueError).dead_letter(queue="dead_values"),
        on(KeyError).discard(why="gone"),
        max_retries=8,
        backoff=2,
        jitter=0.2,
        max_elapsed=None,
        name="remote-call",
    )
    assert file.policies["never"] == Policy(max_retries=0, unmatched="give_up", name="never")
    assert list(file.tasks.items()) == [
        ("shop.charge", "remote-call"), ("*remote*", "remote-call"), ("cron.*", "shared"),
    ]  # fmt: skip


def test_empty_file_says_nothing(read):
    assert (read("").policies, read("# nothing\n").tasks) == ({}, {})


#: (what is changed, into what, the line, what is said)
WRONG = [
    ("max_retries = 8", "max_retry = 8", 2, "no key 'max_retry'; did you mean 'max_retries'?"),
    ("max_retries = 8", "max_retries = -1", 2, "max_retries: max_retries takes a whole number of "
     "at least 0, or None for no limit, got -1"),
    ("backoff = 2", "backoff = 'two'", 3, "backoff must be a number, got 'two'"),
    ("backoff = 2", "backoff = 2000", 3, "backoff 2000 is more than backoff_max 600"),
    ("jitter = 0.2", "jitter = 'ful'", 4, "got 'ful'; did you mean 'full'?"),
    ("[policies.remote-call]", "[policy.remote-call]\n[policies.remote-call]", 1,
     "no key 'policy'; did you mean 'policies'?"),
    ("[[policies.remote-call.rules]]\non = [", "[policies.remote-call.rules]\non = [", 12,
     "this is no TOML"),
    ('on = ["json.JSONDecodeError", "ConnectionError"]\n', "", 7, "rules[1]: lacks 'on'"),
    ('"ConnectionError"]', '"ConnectionErr"]', 8,
     "Python has no exception 'ConnectionErr'; did you mean 'ConnectionError'?"),
    ("json.JSONDecodeError", "json.JSONDecodeEror", 8, "did you mean JSONDecodeError?"),
    ("json.JSONDecodeError", "no_such.Timeout", 8, "there is no module 'no_such' where"),
    ("json.JSONDecodeError", "celery.exceptions.Retry", 8, "Retry is control flow"),
    ('action = "retry"', 'action = "requeue"', 9, "'retry' or 'dead_letter' or 'discard', got"),
    ('action = "retry"', "action = []", 9, "'retry' or 'dead_letter' or 'discard', got []"),
    ('action = "retry"', 'action = "dead-letter"', 9, "did you mean 'dead_letter'?"),
    ("max_retries = 20", "max_retries = 2.5", 10, "rules[1].max_retries: max_retries takes a"),
    ("max_retries = 20", "delay = [1,\n2]", 10, "delay takes seconds"),
    ("max_retries = 20", "max_retries = 20\ncounted = false", 7, "counted retries only"),
    ('queue = "dead_values"', 'max_retries = 2', 15,
     "a rule that says action = 'dead_letter' takes no key 'max_retries'; known are queue"),
    ('queue = "dead_values"', 'queue = ""', 15, "queue is an empty text"),
    ('on = "ValueError"', 'on = "ConnectionResetError"', 12,
     "rule 2 (ConnectionResetError) can never match: rule 1 (JSONDecodeError, ConnectionError)"),
    ('on = "ValueError"', 'on = "ConnectionResetError"  # é', 12, "can never match"),
    ('on = "KeyError"', "on = 7", 18, "takes the names of exceptions, got 7"),
    ("max_retries = 0", "max_retries = true", 23, "got True"),
    ('unmatched = "give_up"', 'unmatched = "giveup"', 24, "did you mean 'give_up'?"),
    ('"*remote*" = "remote-call"', '"*remote*" = "remotecall"', 28,
     "there is no policy 'remotecall'; did you mean 'remote-call'?"),
    ('"*remote*" = "remote-call"', '"*remote*" = 7', 28, "takes the name of a policy, got 7"),
    ('"*remote*" = "remote-call"', '"*remote* = "remote-call"', 28, "this is no TOML"),
    ('"*remote*" =', '"shop.charge" =', 28, "this is no TOML"),
    ("[tasks]", "[tasks", 26, "this is no TOML"),
    ('"cron.*" = "shared"\n', '"cron.*" = """\nshared', 30, "this is no TOML"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "said"), WRONG, ids=[f"{n}-{w[1][:20]}" for n, w in enumerate(WRONG)]
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_error_names_its_line(read, old, new, line, said, ending):
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1).replace("\n", ending)
    with pytest.raises(ImproperlyConfigured) as caught:
        read(text)
    problem = str(caught.value)
    assert problem.startswith(f"ops.toml, line {line}: ")
    assert said in problem
    assert "\n" not in problem


def test_key_that_is_wrong_is_named_among_others_that_need_each_other(read):
    """backoff = 700 is fine under backoff_max = 900: what is wrong is the jitter."""
    with pytest.raises(ImproperlyConfigured, match=r"line 4: policies\.x\.jitter: "):
        read("[policies.x]\nbackoff = 700\nbackoff_max = 900\njitter = 7\n")


def test_file_that_is_not_there_and_one_that_is_no_text(tmp_path):
    with pytest.raises(ImproperlyConfigured, match=r"can't be read: .*No such file"):
        load(str(tmp_path / "ops.toml"))
    (tmp_path / "ops.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(ImproperlyConfigured, match="can't be read"):
        load(str(tmp_path / "ops.toml"))


def test_module_that_fails_to_import_is_named(read, tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImproperlyConfigured, match=r"line 4: .*importing half_written failed"):
        read('[policies.x]\n[[policies.x.rules]]\naction = "retry"\non = "half_written.Timeout"\n')


_VALUES = [
    "true",
    "-1",
    "nan",
    "inf",
    "[]",
    "{}",
    "{a = 1}",
    "''",
    "1979-05-27",
    "9e999",
    "[1]",
    "x",
]


@given(
    st.integers(0, GOOD.count("\n") - 1), st.integers(0, 40), st.integers(0, 9),
    st.sampled_from(["", "\n", "[[", "]]", ".", "=", '"', *_VALUES]), st.sampled_from(_VALUES),
)  # fmt: skip
def test_file_of_any_form_is_read_or_refused_with_a_line(tmp_path_factory, n, at, cut, put, value):
    """A value of another type, or any text anywhere: it is read, or refused with a line."""
    lines = GOOD.split("\n")
    line = lines[n]
    changed = [line[:at] + put + line[at + cut :], f"{line.partition('=')[0]}= {value}"]
    path = tmp_path_factory.getbasetemp() / "ops.toml"
    for text in ("\n".join([*lines[:n], new, *lines[n + 1 :]]) for new in changed):
        path.write_text(text)
        try:
            load(str(path), {"shared": Policy()})
        except ImproperlyConfigured as exc:
            assert re.match(r"\d+: [^\n]+$", str(exc).removeprefix(f"{path}, line "))  # noqa: PT017


# The search for a line

_keys = st.text(st.sampled_from('ab.#"=[]é \\'), min_size=1, max_size=6)
_values = st.one_of(
    st.integers(0, 9).map(str),
    st.sampled_from(
        ['"[tasks]"', "'a = 1'", '"""\n[tasks]\n\n"a" = 1\n"""', "[\n1, # ]\n\n2]", "'''\n\n'''"]
    ),
)
_gaps = st.lists(st.sampled_from(["", "# [x]", "   ", "# a = 1"]), max_size=2)


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.lists(
        st.tuples(_keys, _gaps, st.lists(st.tuples(_keys, _gaps, _values), max_size=3,
                                         unique_by=lambda entry: entry[0])),
        max_size=4, unique_by=lambda table: table[0],
    ),
    st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_every_statement_is_found_where_it_begins(tables, ending):
    """Whatever stands around it: comments, blank lines, texts that look like statements."""
    lines: list[str] = []
    places: dict[tuple[str, ...], int] = {}
    for table, gap, entries in tables:
        lines += gap
        lines.append(f"[{_quoted(table)}]")
        places[(table,)] = len(lines)
        for key, before, value in entries:
            lines += before
            places[(table, key)] = len(lines) + 1
            lines += f"{_quoted(key)} = {value}".split("\n")
    text = ending.join(lines)
    for where, line in places.items():
        assert line_of(text, where) == line
        assert line_of(text, (*where, "missing")) == line


def test_items_of_arrays_of_tables_are_counted():
    text = "[[a.b]]\nx = 1\n\n[[a.b]]\nx = 1\n[a.c]\ny = 1\n[[a.b]]\nx = 3\n"
    assert [line_of(text, ("a", "b", n)) for n in range(3)] == [1, 4, 8]
    assert line_of(text, ("a", "b", 2, "x")) == 9
    assert line_of(text, ("a", "c", "y")) == 7
    assert line_of(text, ("nothing",)) == 1
