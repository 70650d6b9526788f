"""The context of a task: bounded, JSON, and it comes back as it went."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured, Retry
from hypothesis import given
from hypothesis import strategies as st

from celery_resilience import Policy, RetryContext, TransientError, install
from celery_resilience.messages.context import LIMIT, levels_of
from celery_resilience.messages.history import History
from celery_resilience.task.attempt import CurrentAttempt, current_attempt
from celery_resilience.task.context_store import refuse_stores_without_keys

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
_level = st.dictionaries(st.text(max_size=10), _json, max_size=5)


@given(st.lists(_level, max_size=5))
def test_header_brings_back_what_was_put_into_it(levels: list[dict[str, Any]]) -> None:
    context = RetryContext(levels)
    back = RetryContext(History.loads(History(context=tuple(context.levels())).dumps()).context)
    if len(json.dumps(dict(context))) <= LIMIT:
        assert dict(back) == dict(context)


_long = st.integers(0, LIMIT).map(lambda length: {"x": "y" * length})


@given(st.lists(_level | _long, max_size=9))
def test_farthest_ancestors_are_left_out_where_there_is_no_room(levels: Any) -> None:
    here: tuple[dict[str, Any], ...] = ()
    for level in levels:
        context = RetryContext(here)
        if len(json.dumps(level)) <= LIMIT:
            context.update(level)
        here = tuple(context.below())
        assert here[0] == {}
        assert len(json.dumps(here[1:])) <= LIMIT
        if len(json.dumps([dict(context)])) <= LIMIT and context:
            assert here[1] == dict(context), "the nearest is the last to go"


@given(_json | st.lists(_json))
def test_context_from_the_network_never_raises(data: Any) -> None:
    levels = levels_of(data)
    assert len(json.dumps(levels)) <= 2 * LIMIT + 10
    assert History.from_json({"context": data}).context == levels


def test_context_is_a_dict() -> None:
    context = RetryContext()
    context["page"] = 3
    assert (context["page"], context.get("x"), "page" in context, len(context)) == (
        3,
        None,
        True,
        1,
    )
    del context["page"]
    assert dict(context) == {}
    assert repr(RetryContext([{"a": 1}])) == "RetryContext({'a': 1})"


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        (3, "x", TypeError, "names are texts, got 3"),
        ("x", object(), TypeError, r"context\['x'\] takes what JSON can keep"),
        ("x", float("nan"), TypeError, "what JSON can keep"),
        ("x", "y" * LIMIT, ValueError, r"context\['x'\]: a context holds 4096 characters of JSON"),
    ],
)
def test_context_refuses_what_cannot_be_kept_where_it_is_put_in(
    name: Any, value: Any, error: type[Exception], said: str
) -> None:
    context = RetryContext([{"page": 1}])
    with pytest.raises(error, match=said):
        context[name] = value
    assert dict(context) == {"page": 1}


def test_parents_is_read_only() -> None:
    parent = RetryContext([{}, {"page": 3}, {"year": 1}]).parent
    assert parent is not None
    assert dict(parent) == {"page": 3}
    assert dict(parent.parent or {}) == {"year": 1}
    with pytest.raises(TypeError, match="read-only"):
        parent["page"] = 4
    with pytest.raises(TypeError, match="read-only"):
        del parent["page"]
    assert RetryContext().parent is None


def test_replay_keeps_it() -> None:
    history = History(count=3, context=({"page": 3},))
    assert history.replayed("letter").context == ({"page": 3},)
    assert "context" not in History().to_json()


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    install(app)
    return app


def test_eager_attempts_tell_each_other_and_a_direct_call_begins_anew(app: Celery) -> None:
    @app.task(bind=True, failure_policy=Policy(backoff=0))
    def pages(self: Any) -> int:
        self.context["page"] = self.context.get("page", 0) + 1
        if self.context["page"] < 3:
            raise TransientError
        return int(self.context["page"])

    assert pages.apply().get() == 3
    assert pages.apply().get() == 3
    for _ in range(2):
        with pytest.raises(TransientError):
            pages()


def test_context_that_became_unkeepable_is_logged_and_left_as_it_was(
    app: Celery, caplog: Any
) -> None:
    seen = []

    @app.task(bind=True, failure_policy=Policy(max_retries=1, backoff=0))
    def pages(self: Any) -> None:
        seen.append(dict(self.context))
        self.context["list"] = []
        self.context["list"].append(object())
        raise TransientError

    pages.apply()
    assert seen == [{}, {}]
    assert "its context stays what it was before" in caplog.text


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("ordre", "names 'ordre', which is no argument of it; did you mean 'order'?"),
        (7, "context_key takes an argument's name or a function, got 7"),
    ],
)
def test_key_that_names_no_argument_is_refused(app: Celery, key: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"shop.pay: .*{re.escape(said)}"):

        @app.task(name="shop.pay", lazy=False, context_key=key)
        def pay(order: str) -> None: ...


def test_backend_that_keeps_nothing_by_key_is_refused(app: Celery) -> None:
    refuse_stores_without_keys(app)

    @app.task(name="shop.pay", lazy=False, context_key="order")
    def pay(order: str) -> None: ...

    with pytest.raises(ImproperlyConfigured, match=r"shop\.pay: context_key needs a result"):
        refuse_stores_without_keys(app)


@pytest.mark.parametrize("key", ["order", lambda customer, order, **_: order])
def test_state_of_a_piece_of_work_is_found_by_its_key(app: Celery, key: Any) -> None:
    """Whatever form the arguments have, and whichever task of that name is sent."""
    app.conf.result_backend = "cache+memory://"

    @app.task(bind=True, context_key=key)
    def pay(self: Any, customer: str, order: int = 0, fails: bool = False) -> int:
        self.context["tries"] = self.context.get("tries", 0) + 1
        if fails:
            raise TransientError
        return int(self.context["tries"])

    def attempt(*args: Any, **kwargs: Any) -> Any:
        token = current_attempt.set(CurrentAttempt(time.time(), app.tasks[pay.name]))
        pay.push_request(id="1", args=args, kwargs=kwargs, called_directly=False)
        try:
            return pay.run(*args, **kwargs)
        finally:
            pay.pop_request()
            current_attempt.reset(token)

    for _ in range(2):
        with pytest.raises(Retry):
            attempt("me", 7, fails=True)
    assert attempt("me", order=8) == 1
    assert attempt("you", order=7) == 3
    assert attempt("me", 7) == 1, "its success has ended it"
