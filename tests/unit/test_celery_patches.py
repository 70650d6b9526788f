"""The list of what a worker changes in Celery, kombu and py-amqp is true."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from celery import VERSION
from celery.concurrency.solo import TaskPool

from celery_resilience.worker.celery_patches import (
    CONNECTION,
    CONSUMER,
    Ours,
    Patch,
    apply_patches,
)

OLDEST, NEWEST = (5, 5, 0), (5, 7, 9)
STEP: Any = SimpleNamespace(settings=SimpleNamespace(enabled=True))


def places(patches: tuple[Patch, ...], version: tuple[int, ...], hub: object = None) -> list[str]:
    """What is replaced in a solo worker on RabbitMQ, and on a virtual transport."""
    found = []
    for driver in ({"driver_type": "amqp"}, {"driver_type": "redis", "_callbacks": {}}):
        c = SimpleNamespace(
            pool=object.__new__(TaskPool), hub=hub,
            connection=SimpleNamespace(transport=SimpleNamespace(**driver)),
        )  # fmt: skip
        found += [p.name for p in patches if p.is_for(c, True, version) and p.name not in found]
    return [name for each in found for name in each.split()]


@pytest.mark.parametrize("hub", [None, object()], ids=["no-loop", "loop"])
@pytest.mark.parametrize("version", [OLDEST, (5, 6, 3), NEWEST])
def test_patch_has_a_place_of_its_own(version: tuple[int, ...], hub: object) -> None:
    taken = Counter(places(CONSUMER + CONNECTION, version, hub))
    assert [name for name, times in taken.items() if times > 1] == []


def test_patch_says_why() -> None:
    for patch in CONSUMER + CONNECTION:
        assert patch.why
        assert not patch.why.endswith(".")


def test_patch_is_for_its_versions_alone() -> None:
    assert "Consumer.call_soon" in places(CONSUMER, OLDEST)
    assert "Consumer.call_soon_ack" in places(CONSUMER, NEWEST)
    assert "TaskPool.flush" in places(CONNECTION, (5, 5, 3))
    assert "TaskPool.flush" not in places(CONNECTION, (5, 6, 0))


def test_switch_off_leaves_what_keeps_the_worker_going() -> None:
    left = {p.name for p in CONSUMER + CONNECTION if p.always}
    assert {"Consumer.ensure_connected", "virtual.Transport._deliver"} <= left
    assert not any("on_unknown_task" in name for name in left)


def test_patches_are_applied_in_order_where_they_are_for() -> None:
    applied: list[str] = []

    def patch(name: str, **told: Any) -> Patch:
        return Patch(name, "why", lambda c, ours: applied.append(name), **told)

    patches = [
        patch("a"), patch("b", since=(99,)), patch("c", until=(5, 0)),
        patch("d", where=lambda c: c == "other"), patch("e", since=VERSION[:2], until=(99,)),
    ]  # fmt: skip
    apply_patches(patches, "c", STEP)
    assert applied == ["a", "e"]
    off: Any = SimpleNamespace(settings=SimpleNamespace(enabled=False))
    apply_patches([patch("f"), patch("g", always=True)], "c", off)
    assert applied == ["a", "e", "g"]


class Recorder:
    """An object of the worker's; what is set on it later is in *taken*."""

    def __init__(self, taken: list[str], kind: str, *names: str, **more: Any) -> None:
        vars(self).update(dict.fromkeys(names, print), taken=taken, kind=kind, **more)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value
        self.taken.append(f"{self.kind}.{name}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    taken: list[str]
    kind: str


def test_patches_take_the_places_that_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the consumer of a solo worker, the names are what is really replaced."""
    from celery.worker.control import Panel

    from celery_resilience.worker.unprocessable import UnprocessableMessages

    monkeypatch.setattr(Panel, "data", {})
    taken: list[str] = []

    class Solo(TaskPool):  # type: ignore[misc]
        on_apply: Any = print

        def __init__(self) -> None: ...

        def __setattr__(self, name: str, value: Any) -> None:
            taken.append(f"TaskPool.{name}")

    c: Any = Recorder(
        taken, "Consumer", "ensure_connected", "connection_for_read", "add_task_queue", "call_soon",
        "call_soon_ack", "on_close", "_restore_prefetch_count_after_connection_restart",
        "on_unknown_message", "on_unknown_task", "on_invalid_task", "on_decode_error",
        "create_task_handler", pool=Solo(), hub=None, app=None,
        controller=Recorder(taken, "WorkController", "startup_info"),
        blueprint=Recorder(taken, "Blueprint", "on_close"),
    )  # fmt: skip

    def choose() -> None:
        c.connection_for_read = print

    ours: Ours = SimpleNamespace(  # type: ignore[assignment]
        settings=STEP.settings, settler=None, in_hand=None, unstarted=None,
        unprocessable=UnprocessableMessages(c, None, None),  # type: ignore[arg-type]
        transport=SimpleNamespace(choose=choose),
    )  # fmt: skip
    apply_patches(CONSUMER, c, ours)
    named = [
        name for each in CONSUMER if each.is_for(c, True) for name in each.name.split()
        if name != "Panel.data"
    ]  # fmt: skip
    assert taken == named
