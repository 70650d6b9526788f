"""``python -m examples.song``: three songs, seven calls each, three services on a bad day."""

from __future__ import annotations

import os
from typing import Any

from examples import stage
from examples.song.services import Services
from examples.stage import Command, say, wait

TITLES = ("rain", "fire", "silence")


def main() -> None:
    url = stage.broker_url("Make three songs and their videos while the services misbehave.")
    speedup = float(os.environ.setdefault("SONG_SPEEDUP", "20"))
    with stage.broker(url) as environment, Services(speedup) as services:
        assert isinstance(services, Services)
        os.environ.update(
            environment,
            OPENAI_URL=f"{services.url}/v1",
            SUNO_URL=services.url,
            CREATOMATE_URL=services.url,
        )
        arguments = ["-A", "examples.song.tasks", "worker", "-n", "song@%h", "-l", "INFO"]
        arguments += ["--concurrency", "3", "--without-gossip", "--without-mingle"]
        with Command(*arguments) as worker:
            make_songs(services, worker, speedup)


def make_songs(services: Services, worker: Command, speedup: float) -> None:
    # Only now: the app connects to what the environment says.
    from celery_resilience import DeadLetters
    from examples.song.tasks import app, video_of

    say(f"Songs of {', '.join(TITLES)}, {speedup:g} times faster than the table.", "")
    tasks = {title: ids(video_of(title).delay()) for title in TITLES}

    def state(title: str) -> str:
        return str(app.backend.get_state(tasks[title][-1]))

    with DeadLetters(app) as letters:

        def died() -> dict[str, str]:
            listed = [filed.letter for filed in letters.list()]
            return {t: x.id for t in TITLES for x in listed if x.task_id in tasks[t]}

        wait("rain has a video", lambda: state("rain") == "SUCCESS", worker)
        wait("fire and silence have died", lambda: len(died()) == 2, worker)
        say("")
        for title, letter_id in sorted(died().items()):
            letter = letters.find(letter_id).letter
            attempts = letter.history.count
            say(
                f"{title}: {letter.task.rpartition('.')[2]} is a dead letter, {letter.reason} "
                f"after {attempts} attempt{'s' * (attempts != 1)}",
                f"    the last error   {letter.error.error}: {letter.error.message}",
                *(f"    which came from  {c.error}: {c.message}" for c in letter.error.causes),
            )
        say("", "Creatomate is mended, the letter of fire is replayed: the chain goes on there.")
        services.mend()
        for replayed in letters.replay(died()["fire"]):
            say(f"{stage.clock()}  {replayed.result} to {replayed.to}")

        wait("fire has a video", lambda: state("fire") == "SUCCESS", worker)
        say("")
        for title in ("rain", "fire"):
            calls = sum(n for (_, about), n in services.calls.items() if about == title)
            paid = [
                f"{len(keys)} {call}"
                for (call, about), keys in sorted(services.orders.items())
                if about == title
            ]
            video = app.backend.get_result(tasks[title][-1])
            say(f"{title}: {video} after {calls} calls, paid: {', '.join(paid)}")
        say(f"silence: still a dead letter, and only {services.calls['lyrics', 'silence']} call")
        say(f"{stage.clock()}  done")


def ids(result: Any) -> list[str]:
    """The ids of a chain's tasks, in order.

    The results themselves are not kept: they would ask a Redis that has ended to forget them.
    """
    return [] if result is None else [*ids(result.parent), result.id]


if __name__ == "__main__":
    main()
