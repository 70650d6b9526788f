"""Row 14: a member of a chain, a group or a chord dies."""

from __future__ import annotations

from typing import Any

from celery import chain, chord, group

from tests.faults.row import row
from tests.faults.scene import APP, Scene


def _signature(scene: Scene, name: str, number: str, *args: Any) -> Any:
    app = scene.client.app
    return app.signature(f"{APP}.{name}", (number, *args), task_id=number, app=app)


def _member(scene: Scene, name: str, *args: Any, **expected: Any) -> Any:
    return _signature(scene, name, scene.number(name, **expected), *args)


@row(
    "14-chain",
    "a member of a chain dies; after a replay the chain goes on",
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def in_a_chain(scene: Scene) -> None:
    gate = scene.directory / "gate"
    scene.worker()
    # Fails until the gate is there: then its replay succeeds.
    first = scene.number("fails_until", starts=2, ends="letter")
    second = scene.number("follows", ends="waiting", starts=1)
    chain(
        _signature(scene, "fails_until", first, str(gate)),
        _signature(scene, "follows", second),
    ).apply_async(queue="work")
    other = scene.number("told", ends="result", by_record=True)
    app = scene.client.app
    told = app.signature(f"{APP}.told", (other,), app=app)
    doomed = _member(scene, "refuses", ends="letter")
    doomed.link_error(told)
    doomed.apply_async(queue="work")
    scene.wait(lambda: scene.client.count("dead_letter") == 2, 30, message="2 letters")
    scene.wait(lambda: list(scene.lines("errback")), 20, message="the error callback was called")
    scene.tasks.pop(other)
    gate.touch()
    if not scene.stock:
        replay_one(scene, first)
    scene.tasks[first].ends = scene.tasks[second].ends = ("result",)


def replay_one(scene: Scene, number: str) -> None:
    from celery_resilience.operate.dead_letters import DeadLetters

    with DeadLetters(scene.client.app, ["dead_letter"]) as letters:
        (letter,) = [each.letter for each in letters.list() if each.letter.task_id == number]
        results = [each.result.value for each in letters.replay([letter.id])]
    scene.expect(results == ["published"], f"the replay said {results}")


@row(
    "14-group",
    "a member of a group dies",
)
def in_a_group(scene: Scene) -> None:
    scene.worker()
    group(
        [_member(scene, "good") for _ in range(3)] + [_member(scene, "refuses", ends="letter")]
    ).apply_async(queue="work")


@row(
    "14-chord",
    "a member of a chord dies: its body's error callback is called, as Celery does it",
    pools=("prefork", "threads"),
    ci=("redis/prefork",),
)
def in_a_chord(scene: Scene) -> None:
    scene.worker()
    app = scene.client.app
    body = app.signature(f"{APP}.total", ("body",), app=app)
    body.link_error(app.signature(f"{APP}.told", ("chord",), app=app))
    header = [_member(scene, "good") for _ in range(3)]
    header += [_member(scene, "flaky", 1, starts=2), _member(scene, "refuses", ends="letter")]
    chord([each.set(queue="work") for each in header], body.set(queue="work")).apply_async()
    scene.wait(lambda: list(scene.lines("errback")), 30, message="the chord's error callback")
    scene.expect(not scene.starts().get("body"), "the chord's body ran without one of its parts")


@row("14-retry", "members of a chord are retried", pools=("prefork", "threads", "gevent"))
def retried(scene: Scene) -> None:
    scene.worker()
    app = scene.client.app
    number = scene.number("total")
    body = app.signature(f"{APP}.total", (number,), app=app, task_id=number)
    header = [_member(scene, "flaky", n % 3, starts=n % 3 + 1).set(queue="work") for n in range(6)]
    chord(header, body.set(queue="work")).apply_async()
