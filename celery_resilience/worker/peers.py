"""RabbitMQ: asking the other workers whether one of them has in hand what comes again and again.

RabbitMQ delivers again what was not acknowledged on a connection that is lost. A worker that gets
it does not know whether a worker has died or has lost its connection; a worker that has lost it
does. So before a message is given up for the deaths of its workers they are asked, by a control
command of ours. That may take some seconds: who has lost a connection may still be connecting
again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from celery.worker.control import Panel

from celery_resilience.brokers.base import RedeliversOnDisconnect
from celery_resilience.brokers.connections import bound
from celery_resilience.messages.headers import HEADER
from celery_resilience.messages.history import History
from celery_resilience.worker.background import ANSWER, Aside
from celery_resilience.worker.settle import Settler, settler_of

__all__ = [
    "ASKED",
    "Answer",
    "Found",
    "Name",
    "answer_peers",
    "ask_peers",
    "name_of",
    "names_acknowledged",
    "note_acknowledged",
]

logger = logging.getLogger("celery_resilience")

#: What they are asked by: a control command.
COMMAND = "resilience_in_hand"
#: How long answers are waited for, in seconds; how long until it is asked again; for how long it
#: is asked where no worker knows the message, and where none answers.
_WAIT, _PAUSE, _PATIENCE, _UNANSWERED = 1.0, 2.0, 9.0, 20.0
#: How long before a message was counted for the first time the loss may have been noticed that
#: this was due to, in seconds: it may have waited for a consumer, and clocks differ.
_BEFORE = 60.0
#: So long those that come together wait for each other, in seconds: they are asked for at once.
_TOGETHER = 0.1
#: How long all of it takes at most, in seconds, should RabbitMQ not answer either.
ASKED = _UNANSWERED + _PATIENCE + _PAUSE + ANSWER

#: The headers that matter of what was acknowledged last. More than was prefetched can't be lost on
#: the way. All of each message's would keep the garbage collector busy: 1 to 3 % of a short task.
_acknowledged: deque[tuple[Any, ...]] = deque(maxlen=1000)
_MATTER = ("id", "retries", "argsrepr", "kwargsrepr", HEADER)


class Name(NamedTuple):
    """What tells one attempt of a task from all others; not how often it was delivered."""

    id: str
    retries: int
    attempts: int
    lineage: tuple[str, ...]
    #: A digest of what it is called with: two messages under one id are two.
    arguments: str


class Answer(Enum):
    """What a worker knows of a message."""

    #: Its body runs there.
    RUNS = "runs"
    #: It has lost it with its connection, and its body has succeeded: it may be acknowledged.
    DONE = "done"
    #: It has lost it with its connection. It has not died of it.
    HAD = "had"
    #: No worker knows it.
    NOTHING = ""


class Found(NamedTuple):
    answer: Answer
    #: The name of the worker that knows it.
    worker: str = ""


def name_of(message: Any) -> Name | None:
    """The attempt that *message* is; None for what is no task."""
    try:
        headers = message.headers
        return _named(headers if "id" in headers else message.payload, headers)
    except Exception:
        return None


def names_acknowledged(ids: Container[str]) -> set[Name]:
    """The attempts that were acknowledged last, of tasks with these *ids*."""
    names = set()
    for values in [*_acknowledged]:
        with suppress(Exception):
            headers = dict(zip(_MATTER, values, strict=True))
            if headers["id"] in ids:
                names.add(_named(headers, headers))
    return names


def note_acknowledged(message: Any) -> None:
    """*message* was acknowledged, as far as this worker can tell."""
    headers = message.headers
    if headers:
        _acknowledged.append(tuple(map(headers.get, _MATTER)))


def _named(fields: Any, headers: Any) -> Name:
    history = History.loads(headers.get(HEADER))
    id_, retries = fields["id"], fields.get("retries") or 0
    hash(id_)
    shown = f"{fields.get('argsrepr')} {fields.get('kwargsrepr')}"
    digest = blake2b(shown.encode(errors="replace"), digest_size=8).hexdigest()
    return Name(id_, retries, history.count, history.lineage, digest)


# To answer

_answering: WeakKeyDictionary[Settler, Callable[[Name, float], Answer]] = WeakKeyDictionary()


def answer_peers(settler: Settler, tell: Callable[[Name, float], Answer]) -> None:
    """Answer other workers that ask, from now on, for the worker of *settler*."""
    _answering[settler] = tell
    register: Any = Panel.register  # the stubs do not know how it is called
    register(name=COMMAND, type="inspect", visible=False)(_in_hand)


def _in_hand(panel: Any, names: Any = (), ages: Any = (), **kwargs: Any) -> Sequence[str]:
    """What this worker knows of the messages of these names, lost in the last *ages* seconds."""
    settler = settler_of(panel.app)
    tell = None if settler is None else _answering.get(settler)
    if tell is None:
        return []
    return [tell(_name(told), age).value for told, age in zip(names, ages, strict=True)]


def _name(told: Any) -> Name:
    id_, retries, attempts, lineage, arguments = told
    return Name(id_, retries, attempts, tuple(lineage), arguments)


# To ask


@dataclass
class _Asked:
    """One message that is asked for: by all that have come here under its name."""

    then: list[Callable[[Found], None]]
    #: When the message was first counted, in seconds since the epoch.
    counted: float | None
    #: Since when it is asked for, and when workers first answered: by the monotonic clock.
    since: float
    answered: float | None = None

    def is_unknown(self, now: float, is_answer: bool) -> bool:
        """Whether it has been asked for long enough, by the last answer if there are any. Nobody
        answers where RabbitMQ does not."""
        if self.answered is None:
            return now - self.since >= _UNANSWERED
        most = _UNANSWERED + _PATIENCE
        return now - self.answered >= _PATIENCE and (is_answer or now - self.since >= most)


class _Questions:
    """What one worker asks, all of it together; a lost connection ends it."""

    def __init__(self, settler: Settler) -> None:
        self._pending = settler.pending
        self._aside = Aside(settler.pending.loop)
        self._asked: dict[Name, _Asked] = {}
        self._broker: Any = None

    def ask(
        self, app: Any, name: Name, counted: float | None, then: Callable[[Found], None]
    ) -> None:
        if self._broker is not self._pending.broker:
            # The loop's timers have gone with the connection, and so have the messages.
            self._broker = self._pending.broker
            self._asked = {}
        begins = not self._asked
        self._asked.setdefault(name, _Asked([], counted, time.monotonic())).then.append(then)
        if begins:
            self._pending.loop.call_after(_TOGETHER, self._begin, app, self._asked)

    def _begin(self, app: Any, asked: dict[Name, _Asked]) -> None:
        """Ask for what was *asked*, if its connection is still the newest: an older one's questions
        would only be in the way."""
        if asked is not self._asked or not asked:
            return
        names, now = list(asked), time.time()
        counted = [asked[name].counted for name in names]
        ages = [_BEFORE + (0.0 if at is None else now - at) for at in counted]

        def question() -> Any:
            return _question(app, names, ages) if asked is self._asked else None

        what = "asking the other workers about a redelivered message"
        self._aside.ask(what, question, partial(self._hear, app, asked, names))

    def _hear(
        self, app: Any, asked: dict[Name, _Asked], names: Sequence[Name], answers: Any
    ) -> None:
        now, ended = time.monotonic(), []
        for number, name in enumerate(names):
            one, found = asked.get(name), _best(answers or (), number)
            if one is None:
                continue
            if answers and one.answered is None:
                one.answered = now
            if found.answer is not Answer.NOTHING or one.is_unknown(now, bool(answers)):
                del asked[name]
                ended += [(then, found) for then in one.then]
        if asked:
            self._pending.loop.call_after(_PAUSE, self._begin, app, asked)
        for then, found in ended:  # last: whatever comes of it, the others are asked for again
            try:
                then(found)
            except Exception:
                logger.exception("a redelivered message is held: its end could not be decided")


_questions: WeakKeyDictionary[Settler, _Questions] = WeakKeyDictionary()


def ask_peers(
    request: Any, settler: Settler, counted: float | None, then: Callable[[Found], None]
) -> None:
    """*then* gets what is known of the message of *request*, in the worker's loop; it was first
    *counted* at that time, in seconds since the epoch.

    Where that is nothing it comes after some seconds. It never comes if the worker's
    connection is lost meanwhile: then RabbitMQ delivers the message again.
    """
    app, name = request._app, name_of(request._message)
    redelivers = isinstance(settler.pending.broker, RedeliversOnDisconnect)
    if name is None or not (redelivers and app.conf.worker_enable_remote_control):
        then(Found(Answer.NOTHING))
        return
    questions = _questions.get(settler)
    if questions is None:
        questions = _questions[settler] = _Questions(settler)
    questions.ask(app, name, counted, then)


def _question(app: Any, names: Sequence[Name], ages: Sequence[float]) -> Any:
    with app.connection_for_write() as connection:
        bound(connection)
        told = {"names": names, "ages": ages}
        return app.control.broadcast(
            COMMAND, told, connection=connection, reply=True, timeout=_WAIT
        )


def _best(answers: Any, number: int) -> Found:
    """What is said of the message of that *number*; that it runs counts more than that it has."""
    told = {}
    for each in answers:
        for worker, said in each.items() if isinstance(each, Mapping) else ():
            if isinstance(said, list) and number < len(said) and said[number]:
                told[str(said[number])] = worker
    for answer in Answer:
        if answer.value in told:
            return Found(answer, told[answer.value])
    return Found(Answer.NOTHING)
