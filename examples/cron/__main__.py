"""``python -m examples.cron``: three jobs under celery beat, until each has succeeded twice."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

from examples import stage
from examples.cron.services import Services
from examples.stage import Command, say, wait

JOBS = ("check_price", "hunt_trends", "watch_releases")
#: How often each job has to succeed.
TIMES = 2


def main() -> None:
    url = stage.broker_url("Run three cron jobs under celery beat while the services misbehave.")
    with (
        stage.broker(url) as environment,
        Services() as services,
        tempfile.TemporaryDirectory(prefix="cron-") as folder,
    ):
        os.environ.update(environment, SERVICES_URL=services.url)
        app = ["-A", "examples.cron.tasks"]
        schedule = str(Path(folder, "schedule"))
        worker = Command(
            *app, "worker", "-n", "cron@%h", "-l", "INFO", "--concurrency", "3",
            "--without-gossip", "--without-mingle",
        )  # fmt: skip
        beat = Command(*app, "beat", "-l", "INFO", "--schedule", schedule, "--pidfile", "")
        say(f"Three jobs every 2 s, until each has succeeded {TIMES} times.", "")
        with worker:
            with beat:
                wait(f"all have succeeded {TIMES} times", lambda: enough(worker), worker, beat)
            say("", "Beat has ended; what it has sent is finished.", "")
            wait("what was sent has ended", lambda: sent(beat) == ended(worker), worker)
            report(worker, beat)


def enough(worker: Command) -> bool:
    return all(succeeded(worker)[job] >= TIMES for job in JOBS)


def sent(beat: Command) -> Counter[str]:
    """How often each job was due."""
    return counted(r"Sending due task \w+ \(cron\.(\w+)\)", beat)


def succeeded(worker: Command) -> Counter[str]:
    return counted(r"Task cron\.(\w+)\[\S+\] succeeded", worker)


def dead(worker: Command) -> Counter[str]:
    return counted(r"cron\.(\w+)\[\S+\]: dead letter", worker)


def ended(worker: Command) -> Counter[str]:
    """How often each job has succeeded or become a dead letter: there is nothing else."""
    return succeeded(worker) + dead(worker)


def counted(pattern: str, command: Command) -> Counter[str]:
    """How often each job is found in what *command* has logged."""
    found = (re.search(pattern, line) for line in list(command.lines))
    return Counter(match[1] for match in found if match is not None and match[1] in JOBS)


def report(worker: Command, beat: Command) -> None:
    # Only now: the app connects to what the environment says.
    from celery_resilience import DeadLetters
    from examples.cron.tasks import app

    say("")
    for job in JOBS:
        say(
            f"{job}: sent {sent(beat)[job]}, succeeded {succeeded(worker)[job]}, "
            f"dead letters {dead(worker)[job]}"
        )
    say("", "The dead letters, sources included:")
    with DeadLetters(app) as letters:
        stories = Counter(
            f"{letter.task.rpartition('.')[2]}: {letter.reason}, {letter.error.message}"
            for letter in (filed.letter for filed in letters.list())
        )
    for story, number in stories.items():
        say(f"    {number} x {story}")
    say(f"{stage.clock()}  done")


if __name__ == "__main__":
    main()
