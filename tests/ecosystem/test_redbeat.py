"""RedBeat sends by its schedule; what dies of it is a dead letter."""

from __future__ import annotations

from tests.ecosystem.conftest import need
from tests.servers import eventually

need("redbeat")


def test_redbeat_sends_what_is_due(scene, start_worker):
    start_worker("tests.ecosystem.apps.redbeat", scene.broker, env=scene.env, arguments=["-B"])
    eventually(lambda: scene.lines().count("fine 1") >= 2, 30, message="beat has sent twice")
    eventually(lambda: scene.letters(), 30, message="a task of the schedule has died")
