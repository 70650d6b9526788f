"""``python -m examples.song``: three songs, seven calls each, three services on a bad day."""

from __future__ import annotations

import os

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
    from celery_resilience.deadletters import DeadLetters
    from examples.song.tasks import app, video_of

    say(f"Songs of {', '.join(TITLES)}, {speedup:g} times faster than the table.", "")
    videos = {title: video_of(title).delay() for title in TITLES}
    titles: dict[str, str] = {}
    for title, video in videos.items():
        link = video
        while link is not None:
            titles[link.id] = title
            link = link.parent

    with DeadLetters(app) as letters:

        def died() -> dict[str, str]:
            listed = [filed.letter for filed in letters.list()]
            return {titles[x.task_id]: x.id for x in listed if x.task_id in titles}

        wait("rain has a video", lambda: videos["rain"].ready(), worker)
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

        def result(title: str) -> str:
            return str(app.AsyncResult(videos[title].id).result)

        wait(
            "fire has a video",
            lambda: app.AsyncResult(videos["fire"].id).state == "SUCCESS",
            worker,
        )
        say("")
        for title in ("rain", "fire"):
            calls = sum(n for (_, about), n in services.calls.items() if about == title)
            paid = [
                f"{len(keys)} {call}"
                for (call, about), keys in sorted(services.orders.items())
                if about == title
            ]
            say(f"{title}: {result(title)} after {calls} calls, paid: {', '.join(paid)}")
        say(f"silence: still a dead letter, and only {services.calls['lyrics', 'silence']} call")
        say(f"{stage.clock()}  done")


if __name__ == "__main__":
    main()
