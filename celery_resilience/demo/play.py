"""The demo itself, in four acts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from kombu.exceptions import OperationalError

from celery_resilience.cli.text import cut, wrapped
from celery_resilience.demo.app import DEAD_LETTERS, app, call
from celery_resilience.demo.interrupts import Signals
from celery_resilience.demo.ledger import UNDER_WAY, Ledger, State
from celery_resilience.demo.screen import WIDTH, Screen
from celery_resilience.demo.services import DOWNTIME, Services
from celery_resilience.demo.stage import Worker, WorkerEnded, broker
from celery_resilience.errors import BrokerError
from celery_resilience.operate.dead_letters import DeadLetters, Filed, ReplayResult
from celery_resilience.policy.decision import Reason

__all__ = ["play"]

PROCESSES = 4
#: The longest that nothing may happen in an act, in seconds.
PATIENCE = 60.0
#: How long a person gets to read the dead letters, in seconds.
READING = 5.0
#: How many letters of each reason are shown.
EXAMPLES = 3
NEXT = (
    "In your own app: install(app), and @app.task(base=ResilientTask). "
    "All that this demo's tasks do is in celery_resilience/demo/app.py."
)
#: A blank between two words that stay in one line.
_JOINED = "\xa0"

_MEANING = {
    Reason.PERMANENT: "no retry can help",
    Reason.EXHAUSTED: "every retry it was allowed has failed",
    Reason.WORKER_LOST: "it killed the process that ran it, time after time",
}


def play(broker_url: str | None, tasks: int, signals: Signals) -> bool:
    """Run the demo; whether every task has succeeded in the end.

    Raises BrokerError without a broker, WorkerEnded if the worker dies, Interrupted.
    """
    with ExitStack() as stack:
        ledger = Ledger()
        services = stack.enter_context(Services(ledger.add))
        screen = Screen(ledger)
        words = stack.enter_context(broker(broker_url))
        worker = stack.enter_context(Worker(services.ledger_url, PROCESSES))
        return Demo(ledger, services, screen, worker, signals, tasks).run(words)


class Demo:
    """The acts, and what they have in common."""

    def __init__(
        self, ledger: Ledger, services: Services, screen: Screen, worker: Worker,
        signals: Signals, tasks: int,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.services = services
        self.screen = screen
        self.worker = worker
        self.signals = signals
        self.urls = services.urls(tasks)
        self.letters: list[Filed] = []
        self.replayed = 0

    def run(self, words: str) -> bool:
        """All four acts; whether every task has succeeded."""
        self.introduce(words)
        self.send()
        self.let_fail()
        self.show_letters()
        self.fix_and_replay()
        return self.summarise()

    def introduce(self, words: str) -> None:
        text = (
            f"{len(self.urls)} tasks call six services over HTTP, and the services fail. Every "
            "failure is classified: worth a retry after a random, growing delay (3 at most, so "
            "that you see the end), or a dead letter at once. Then the services are fixed and the "
            "dead letters replayed. All of it is "
            f"real: celery worker with {PROCESSES} processes, {words}."
        )
        self.screen.say(wrapped(text, WIDTH - 1), "")

    def send(self) -> None:
        """Act 1: everything is sent while the worker starts."""
        self.ledger.expect(self.urls)
        try:
            for task, url in self.urls.items():
                call.apply_async((url,), task_id=task)
        except OperationalError as exc:
            raise BrokerError(f"the broker took no messages: {exc}") from exc
        if not self.wait("1/4 the worker starts", lambda: self.ledger.worker_is_ready):
            raise WorkerEnded(f"the worker does not start; its log:\n{self.worker.tail()}")

    def let_fail(self) -> None:
        """Act 2: every task succeeds, or becomes a dead letter."""
        began = time.monotonic()

        def settled() -> bool:
            if time.monotonic() > began + DOWNTIME:
                self.services.open_stock()
            if self.ledger.in_state(*UNDER_WAY):
                return False
            # The ledger knows of a letter a moment before the broker does.
            self.letters = self.listed()
            return len(self.letters) >= len(self.ledger.in_state(State.DEAD))

        self.wait("2/4 failures are classified, retried or buried", settled)
        self.letters = self.listed()

    def show_letters(self) -> None:
        """Act 3: why they died."""
        say = self.screen.say
        say("", f"3/4 {len(self.letters)} dead letters in {DEAD_LETTERS}", bold=True)
        by_reason: dict[Reason, list[Filed]] = {}
        for filed in self.letters:
            by_reason.setdefault(filed.letter.reason, []).append(filed)
        for reason, group in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            say(f"{len(group):>4} {reason}: {_MEANING.get(reason, '')}")
            # One example of each hint.
            examples = list({filed.letter.hint: filed.letter for filed in reversed(group)}.values())
            for letter in examples[: -EXAMPLES - 1 : -1]:
                say(cut(f"     {letter.id}  {letter.task_id:<12}  {letter.hint}", WIDTH - 1))
            if len(group) > EXAMPLES:
                say(f"     and {len(group) - min(EXAMPLES, len(examples))} more")
        if self.screen.live:
            say("Fixing the services ...")
            self.rest(READING)

    def fix_and_replay(self) -> None:
        """Act 4: the services are fixed, every letter is replayed."""
        self.services.fix()
        self.screen.say("", "4/4 the services are fixed, the dead letters replayed", bold=True)
        self.ledger.expect(filed.letter.task_id for filed in self.letters)
        with DeadLetters(app) as letters:
            for replayed in letters.replay("all"):
                self.replayed += replayed.result is ReplayResult.PUBLISHED
        self.wait("4/4 replayed", lambda: not self.ledger.in_state(*UNDER_WAY))

    def summarise(self) -> bool:
        """Figures; whether every task has succeeded, and no letter is left."""
        ledger, total = self.ledger, len(self.urls)
        left = len(self.listed())
        missing = [task for task in self.urls if not ledger.successes[task]]
        twice = sum(count > 1 for count in ledger.successes.values())
        replayed = [filed.letter.task_id for filed in self.letters]
        reasons = Counter(str(filed.letter.reason) for filed in self.letters)
        figures = {
            "tasks": f"{total}",
            "attempts": f"{ledger.attempts.total()}, "
            f"{max(ledger.attempts.values(), default=0)} at most for one task",
            "retries": f"{ledger.kinds.total()}: {_listed(ledger.kinds)}",
            "by rule": _listed(ledger.rules),
            "recovered": f"{ledger.recovered(replayed)} succeeded after a retry",
            "dead-lettered": f"{len(self.letters)}: {_listed(reasons)}",
            "replayed": f"{self.replayed}",
            "succeeded": f"{total - len(missing)} of {total}, {twice or 'none'} of them twice",
            "elapsed": f"{self.screen.elapsed:.1f} s",
        }
        say = self.screen.say
        say("")
        for name, figure in figures.items():
            text = wrapped(figure, WIDTH - 1, f"{name:>13}  ", " " * 15)
            say(text.replace(_JOINED, " "))
        if missing or left:
            names = ", ".join(missing[:10]) or "none"
            say("", f"Not succeeded: {names}. Dead letters left: {left}.")
            return False
        say("", "Every task has succeeded.", bold=True)
        say(wrapped(NEXT, WIDTH - 1))
        return True

    def listed(self) -> list[Filed]:
        with DeadLetters(app) as letters:
            return list(letters.list())

    def wait(self, act: str, until: Callable[[], bool]) -> bool:
        """Show the *act* until it is over; False if nothing happens any more."""
        attempts, deadline = -1, 0.0
        while not (over := until()):
            self.signals.check()
            self.worker.check()
            self.screen.progress(act)
            if attempts != (attempts := self.ledger.attempts.total()):
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.screen.progress(act, last=True)
        return over

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.signals.check()
            time.sleep(0.1)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number}{_JOINED}{name}" for name, number in counts.most_common()) or "none"
