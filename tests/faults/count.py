"""Where every numbered task is: in exactly one place, if the promise holds."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kombu.utils.json import loads

from celery_resilience.brokers.connect import open_broker
from celery_resilience.messages.dead_letter import DeadLetter
from celery_resilience.messages.envelope import Envelope
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History

if TYPE_CHECKING:
    from tests.faults.scene import Scene

__all__ = ["Count", "Places"]


@dataclass(frozen=True)
class Count:
    """A cell, counted."""

    sent: int
    result: int = 0
    #: Waiting retries, and messages that nobody has begun yet.
    waiting: int = 0
    letters: int = 0
    dropped: int = 0
    #: In the broker, but among what a dead worker held, where no living one sees it.
    stuck: int = 0
    lost: int = 0
    #: Bodies that were started more often than they asked for, and more often than may be.
    doubled: int = 0
    #: Such starts that the row allows.
    allowed: int = 0
    #: How many may be lost: in the window of kombu's Redis transport, where a worker that takes
    #: through it is killed or cut off.
    window: int = 0
    #: Seconds until the last one was at its end, after the fault.
    seconds: float = 0.0
    complaints: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost > self.window or self.stuck or self.doubled or self.complaints)


@dataclass
class Places:
    """Looks for the tasks of a scene wherever they may be."""

    scene: Scene
    _letters: dict[str, list[DeadLetter]] = field(default_factory=dict)
    _counted: int = -1
    #: Letters that belong to no number.
    strangers: list[DeadLetter] = field(default_factory=list)
    #: How many of those the row has to have.
    nameless: int = 0

    def states(self) -> dict[str, str]:
        """What the result store says about each number; nothing about most that have no result."""
        backend = self.scene.client.app.backend
        numbers = list(self.scene.tasks)
        found: dict[str, str] = {}
        for at in range(0, len(numbers), 500):
            part = numbers[at : at + 500]
            for number, text in zip(
                part, backend.client.mget([backend.get_key_for_task(n) for n in part]), strict=True
            ):
                if text is not None:
                    found[number] = json.loads(text)["status"]
        return found

    def letters(self) -> dict[str, list[DeadLetter]]:
        """The dead letters by the number of their task."""
        count = self.scene.client.count("dead_letter")
        if count != self._counted:
            found: dict[str, list[DeadLetter]] = defaultdict(list)
            self.strangers = []
            for letter in self.scene.client.letters():
                number = _number(letter.envelope)
                if number in self.scene.tasks:
                    found[number].append(letter)
                else:
                    self.strangers.append(letter)
            self._letters, self._counted = found, count
        return self._letters

    def lying(self) -> dict[str, list[Envelope]]:
        """What lies in the work queue or waits in the broker."""
        found: dict[str, list[Envelope]] = defaultdict(list)
        with self.scene.client.app.connection_for_read() as connection:
            broker = open_broker(connection)
            for each in broker.browse("work"):
                found[_number(each.envelope)].append(each.envelope)
            broker.close()
        if self.scene.on_redis:
            client = self.scene.redis()
            for key in client.scan_iter("*celery_resilience:waiting:*"):
                for payload in client.zrange(key, 0, -1):
                    envelope = Envelope.from_wire(loads(payload), "work")
                    found[_number(envelope)].append(envelope)
        else:
            for name in self.delay_queues():
                with self.scene.client.app.connection_for_read() as connection:
                    broker = open_broker(connection)
                    for each in broker.browse(name):
                        found[_number(each.envelope)].append(each.envelope)
                    broker.close()
        return found

    def stuck(self) -> Counter[str]:
        """What the workers hold unacknowledged: those that have ended hold it for nobody."""
        found: Counter[str] = Counter()
        if not self.scene.on_redis:
            return found
        client = self.scene.redis()
        for text in client.hvals("unacked"):
            found[_number(Envelope.from_wire(loads(text)[0], "work"))] += 1
        for key in client.scan_iter("*celery_resilience:held:*"):
            for text in client.hvals(key):
                payload = text.split(b"\n", 1)[-1]
                found[_number(Envelope.from_wire(loads(payload), "work"))] += 1
        return found

    def are_final(self) -> bool:
        """Whether every task is where it may end; that is looked at more closely afterwards."""
        surely = sum(task.ends == ("letter",) for task in self.scene.tasks.values())
        if self.scene.client.count("dead_letter") < surely:
            return False  # to read them all takes its time: some have ten million characters
        states, letters = self.states(), self.letters()
        ended, told = self._noted("end"), self._noted("dropped")
        waiting: dict[str, list[Envelope]] | None = None
        for number, task in self.scene.tasks.items():
            there = self._where(number, states, letters, ended, told)
            if "waiting" in task.ends and not there & set(task.ends):
                waiting = self.lying() if waiting is None else waiting
                if number in waiting:
                    there.add("waiting")
            if not there & set(task.ends):
                return False
        return True

    def _where(
        self,
        number: str,
        states: dict[str, str],
        letters: dict[str, list[Any]],
        ended: set[str],
        told: set[str],
    ) -> set[str]:
        task, there = self.scene.tasks[number], set()
        if number in ended if task.by_record else states.get(number) == "SUCCESS":
            there.add("result")
        if number in letters:
            there.add("letter")
        # Celery has no state of its own for what was discarded or ignored: the record tells.
        revoked = (
            states.get(number) == "REVOKED" and number not in letters
        )  # an expired one is both
        if revoked or number in told:
            there.add("dropped")
        return there

    def _noted(self, what: str) -> set[str]:
        """The numbers of which the record says *what*."""
        return {number for number, *_ in self.scene.lines(what)}

    def _lying_still(self, is_somewhere: Callable[[str], Any]) -> dict[str, list[Envelope]]:
        """As :meth:`lying`; what hops from one of RabbitMQ's levels to the next is in neither."""
        until = time.monotonic() + 10
        while True:
            lying = self.lying()
            if all(number in lying or is_somewhere(number) for number in self.scene.tasks):
                return lying
            if self.scene.on_redis or time.monotonic() > until:
                return lying
            time.sleep(0.2)

    def count(self, seconds: float) -> Count:
        """Count; the workers have ended."""
        scene = self.scene
        states, letters = self.states(), self.letters()
        ended, told = self._noted("end"), self._noted("dropped")
        stuck, starts = self.stuck(), scene.starts()
        lying = self._lying_still(
            lambda number: number in stuck or self._where(number, states, letters, ended, told)
        )
        tally: Counter[str] = Counter()
        complaints = list(scene.complaints)
        for number, task in scene.tasks.items():
            there = self._where(number, states, letters, ended, told)
            there |= {"waiting"} if number in lying else set()
            there |= {"stuck"} if number in stuck else set()
            copies = len(letters.get(number, ())) + len(lying.get(number, ())) + stuck[number]
            if not there:
                tally["lost"] += 1
            for place in there:
                tally[place] += 1
            forked = scene.cell.row.forks and not scene.on_redis
            once = len(there) == 1 and copies <= 1
            # A second copy may wait; if that is all there is, nobody has run it.
            second = {"waiting"} if forked and there & {*task.ends} else set()
            strays = there - {*task.ends, "stuck"} - second
            if there and (strays or not (once or forked)):
                why = [f"{letter.reason}: {letter.rule}" for letter in letters.get(number, ())]
                complaints.append(f"{number} ({task.name}) is in {sorted(there)} x{copies} {why}")
            more = starts.get(number, 0) - task.starts
            if more > 0:
                allowed = more <= scene.doubles + (task.starts if forked else 0)
                tally["allowed" if allowed else "doubled"] += 1
                if not allowed:
                    complaints.append(f"{number} ({task.name}) was started {more} times too often")
            for letter in letters.get(number, ()):
                if task.reasons and letter.reason.value not in task.reasons:
                    complaints.append(f"{number} ({task.name}): its letter says {letter.reason}")
        if len(self.strangers) != self.nameless:
            complaints.append(f"{len(self.strangers)} letters of no task, not {self.nameless}")
        by_kombus = scene.cell.broker == "kombu-redis"
        return Count(
            sent=len(scene.tasks), result=tally["result"], waiting=tally["waiting"],
            letters=tally["letter"], dropped=tally["dropped"], stuck=tally["stuck"],
            lost=tally["lost"], doubled=tally["doubled"], allowed=tally["allowed"],
            window=scene.deaths if scene.cell.row.window and by_kombus else 0,
            seconds=seconds, complaints=() if scene.stock else tuple(complaints),
        )  # fmt: skip

    def delay_queues(self) -> list[str]:
        """The queues on RabbitMQ that retries wait in."""
        vhost = str(self.scene.client.app.conf.broker_url).rsplit("/", 1)[1]
        # Binaries come back from the node as sizes alone: so it is asked for text.
        text = self.scene.servers.rabbitmq.evaluate(
            "[binary_to_list(element(4, amqqueue:get_name(Q)))"
            f' || Q <- rabbit_amqqueue:list(<<"{vhost}">>)].'
        )
        names = re.findall(r'"([^"]+)"', text)
        return [name for name in names if name.startswith("celery_resilience.")]


def _number(envelope: Envelope) -> str:
    return str(envelope.properties.get("correlation_id") or envelope.headers.get("id") or "")


def history_of(envelope: Envelope) -> History:
    """The attempts that lie behind a message."""
    return History.loads(envelope.headers.get(HEADER))
