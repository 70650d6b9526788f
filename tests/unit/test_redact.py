"""What no output may show is in no output."""

from __future__ import annotations

import json
from pprint import pformat
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.error_record import ErrorRecord
from celery_resilience.messages.redact import FAILED, MASK, Redactor, printable
from celery_resilience.policy.decision import Reason
from celery_resilience.settings import Settings

redact = Redactor(["token", "card", "api-key"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{'token': 'abc', 'n': 1}", "{'token': ***, 'n': 1}"),
        ("{'n': 1, 'card': {'number': '4', 'until': ['05', '27']}}", "{'n': 1, 'card': ***}"),
        ('{"token": "abc", "n": 1}', '{"token": ***, "n": 1}'),
        ('{"token":"abc","n":1}', '{"token":***,"n":1}'),
        ("{'Token': b'abc', 'n': 1}", "{'Token': ***, 'n': 1}"),
        ("{'card': <Card (4) x>, 'n': 1}", "{'card': ***, 'n': 1}"),
        ("{'card': <Card (4] x>, 'n': 1}", "{'card': ***"),
        ("{'card': 4111, 'n': 1}", "{'card': ***, 'n': 1}"),
        ("{'token': 'abc...", "{'token': ***"),
        ("{'card': {'number': '4111...", "{'card': ***"),
        ("charge(token=abc, n=1)", "charge(token=***, n=1)"),
        ("charge(token=Secret('a b'), n=1)", "charge(token=***, n=1)"),
        ("charge(token='a, b', n=1)", "charge(token=***, n=1)"),
        ("https://pay/?token=abc&n=1", "https://pay/?token=***&n=1"),
        ("API_KEY=zzz n=1", "API_KEY=*** n=1"),
        ("api-key: Bearer abc def\nn: 1", "api-key: ***\nn: 1"),
        ("[('token', 'abc'), ('n', 1)]", "[('token', ***), ('n', 1)]"),
        ("os.environ['TOKEN'] = 'abc'", "os.environ['TOKEN'] = ***"),
        (r"'{\"token\": \"a\\\"bc\", \"n\": 1}'", r"'{\"token\": ***, \"n\": 1}'"),
        (r"""{'json': '{"token": "a\\"bc"}', 'n': 1}""", r"""{'json': '{"token": ***}', 'n': 1}"""),
    ],
)
def test_value_of_a_named_key_is_masked(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text", ["a bad token, sorry", "token == 3", "tokens=4", "access_token is old", "", "{'n': 1}"]
)
def test_other_texts_stay_as_they_are(text):
    assert redact(text) == text


SECRET = "s3cr3t"
#: Texts that hold the secret between whatever is hard to find the end of.
secrets = st.tuples(
    st.text(st.sampled_from("'\"\\,:={}[]()<> \nab"), max_size=6),
    st.text(st.sampled_from("'\"\\ab ,"), max_size=4),
).map(lambda around: around[0] + SECRET + around[1])
leaves = st.one_of(secrets, secrets.map(str.encode), st.integers(), st.none(), st.booleans())
values = st.recursive(
    secrets | secrets.map(str.encode),
    lambda inner: st.one_of(
        st.lists(inner | leaves, min_size=1, max_size=3),
        st.tuples(inner, leaves),
        st.dictionaries(st.sampled_from(["a", "b", "it's"]), inner, min_size=1, max_size=2),
    ),
    max_leaves=4,
)
others = st.one_of(st.text(st.sampled_from("xyz'\"\\,{}[]"), max_size=5), st.integers())


@given(st.dictionaries(st.sampled_from(["n", "it's", 'a"b']), others, max_size=2), values, others)
def test_secret_is_masked_whole_in_a_repr(before, secret, after):
    arguments = {**before, "token": secret, "after": after}
    texts = [repr(arguments), pformat(arguments, width=20)]
    if "b'" not in texts[0] and 'b"' not in texts[0]:
        texts.append(saferepr(arguments))  # it does not escape the quotes in bytes
    for text in texts:
        assert SECRET not in redact(text), text


@given(values, st.integers(0, 200))
def test_secret_is_masked_whole_where_the_text_is_cut(secret, at):
    text = repr({"n": [1, {"Card": secret}]})
    assert SECRET not in redact(text[:at] + "...")


@given(secrets, st.sampled_from([repr, json.dumps]))
def test_secret_is_masked_whole_in_json(secret, quote):
    inner = json.dumps({"token": secret, "n": 1})
    for text in (inner, f"the server said {inner}, sorry", quote(inner), quote({"body": inner})):
        assert SECRET not in redact(text), text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["token", "CARD", "n", "m"]), inner, max_size=3)
    ),
)


@given(json_values)
def test_values_are_masked_by_their_keys(value):
    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            return any(
                held != MASK if key.lower() in ("token", "card") else holds(held)
                for key, held in value.items()
            )
        return isinstance(value, list) and any(map(holds, value))

    shown = redact.value(value)
    assert not holds(shown)
    json.dumps(shown)


@given(st.text())
def test_whatever_the_text_nothing_is_raised(text):
    redact(text)
    printable(text)
    printable(text, lines=True)


def test_functions_come_last():
    def without_digits(text: str) -> str:
        return "".join("#" if c.isdigit() else c for c in text)

    assert Redactor(["token", without_digits])("{'token': 'abc', 'n': 12}") == (
        "{'token': ***, 'n': ##}"
    )


@pytest.mark.parametrize("function", [lambda text: 1 / 0, lambda text: None])
def test_function_that_fails_shows_nothing(function):
    assert Redactor([function])("anything") == FAILED


def test_redactor_without_names_and_functions_changes_nothing():
    assert Redactor()("{'token': 'abc'}") == "{'token': 'abc'}"


credentials = Redactor(["card"], credentials=True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{'password': 'hunter2', 'n': 1}", "{'password': ***, 'n': 1}"),
        ("{'db_passwd': 'hunter2', 'n': 1}", "{'db_passwd': ***, 'n': 1}"),
        ("login(accessToken='abc', n=1)", "login(accessToken=***, n=1)"),
        ("login(client_secret='abc', card=4)", "login(client_secret=***, card=***)"),
        ('{"X-Api-Key": "abc", "apikey": "d"}', '{"X-Api-Key": ***, "apikey": ***}'),
        ("Authorization: Bearer abc\nn: 1", "Authorization: ***\nn: 1"),
        ("[('Set-Cookie', 'sid=1; path=/'), ('n', 1)]", "[('Set-Cookie', ***), ('n', 1)]"),
        ("no route to redis://shop:hunter2@db:6379/0", "no route to redis://shop:***@db:6379/0"),
        ("at amqp://:hunter2@db//", "at amqp://:***@db//"),
    ],
)
def test_credentials_are_known_by_how_their_names_end(text, shown):
    assert credentials(text) == shown


@pytest.mark.parametrize(
    "text", ["max_tokens=4", "secretary='Ms Lee'", "KeyError: 'password'", "http://db:80/a@b",
             "Unexpected token, sorry", "{'tokenizer': 1}"]
)  # fmt: skip
def test_value_that_is_not_named_like_a_credential_stays(text):
    assert credentials(text) == text


def test_credentials_are_masked_as_keys_too():
    told = {"user": "ann", "user_password": "hunter2", "headers": [["Cookie", "sid=1"]]}
    masked = {"user": "ann", "user_password": MASK, "headers": [["Cookie", MASK]]}
    assert credentials.value(told) == masked


def test_credentials_are_masked_unless_a_setting_says_not_to():
    text = "{'password': 'hunter2', 'card': 4}"
    assert Redactor.of(Settings())(text) == "{'password': ***, 'card': 4}"
    assert Redactor.of(Settings(redact_credentials=False, redact=("card",)))(text) == (
        "{'password': 'hunter2', 'card': ***}"
    )


def test_hostile_text_is_masked_soon():
    text = "token: (" * 20_000
    assert len(redact(text)) < 20_000


def test_every_text_of_a_letter_is_redacted():
    said = "token=s3cr3t"
    try:
        try:
            raise KeyError(said)
        except KeyError as cause:
            raise ValueError(said) from cause
    except ValueError as exc:
        error = ErrorRecord.of(exc)
    headers = {
        "task": "t",
        "argsrepr": f"({{'token': '{SECRET}'}},)",
        "kwargsrepr": f"{{'card': '{SECRET}'}}",
        "token": SECRET,
        "mine": {"card": SECRET},
    }
    envelope = Envelope(b"[]", "application/json", "utf-8", headers)
    letter = DeadLetter.write(Reason.PERMANENT, envelope, error=error, hint=said, rule=said)
    assert SECRET in repr(letter)
    assert SECRET not in repr(redact.letter(letter))


def test_terminal_obeys_nothing_in_a_text():
    text = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eback \u2028 \udc80"
    assert printable(text) == (r"\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eback \udc80")
    assert printable("a\tb\r\nc\rd\0", lines=True) == "a   b\nc\\rd\\x00"


@given(st.text())
def test_printable_text_can_be_printed(text):
    for shown in (printable(text), printable(text, lines=True)):
        shown.encode()
        assert all(c == "\n" or (c >= " " and not "\x7f" <= c <= "\x9f") for c in shown)
