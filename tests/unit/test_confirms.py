"""Which message RabbitMQ has sent back: its answer names no number.

The channel is a stub: a queue that is deleted between two messages of the same moment, while the
first one's confirm is late, can't be had on demand.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amqp.basic_message import Message

from celery_resilience.brokers.base import Unroutable
from celery_resilience.brokers.rabbitmq.publisher import ConfirmingPublisher
from celery_resilience.messages.envelope import Envelope


class Channel:
    is_open = True

    def prepare_message(self, body: bytes, properties: dict[str, Any], **options: Any) -> Message:
        headers = options.pop("headers")
        return Message(body, application_headers=headers)

    def _basic_publish(self, message: Message, **options: Any) -> None:
        pass


@pytest.fixture
def publisher() -> ConfirmingPublisher:
    # A loop reads the confirms, so that publishing waits for none.
    connected = SimpleNamespace(frame_max=131_072)
    theirs = SimpleNamespace(
        connection_errors=(OSError,), collect=lambda: None, connection=connected
    )
    publisher = ConfirmingPublisher(theirs, hub=SimpleNamespace(remove=lambda sock: None))
    publisher.link.connection, publisher.link.channel = theirs, Channel()
    return publisher


class Published:
    """A message that was published, and what has been told about it."""

    def __init__(self, publisher: ConfirmingPublisher, body: bytes, **headers: Any) -> None:
        self.copy = Envelope(body, "application/json", "utf-8", headers=headers, queue="letters")
        self.told: list[BaseException | None] = []
        publisher.publish(self.copy, "", "letters", self.told.append)

    def comes_back(self, publisher: ConfirmingPublisher) -> None:
        message = Message(self.copy.body, application_headers=dict(self.copy.headers))
        publisher._on_return(None, "", "letters", message)


def test_message_that_comes_back_is_not_acknowledged(publisher: ConfirmingPublisher) -> None:
    before = Published(publisher, b"1", id="a")
    after = Published(publisher, b"2", id="b")
    after.comes_back(publisher)
    publisher._unconfirmed.on_ack(2, True)
    assert before.told == [None]
    assert [type(problem) for problem in after.told] == [Unroutable]


def test_messages_with_one_body_are_told_apart_by_their_headers(
    publisher: ConfirmingPublisher,
) -> None:
    first = Published(publisher, b"[]", id="a", retries=1)
    second = Published(publisher, b"[]", id="a", retries=2)
    second.comes_back(publisher)
    publisher._unconfirmed.on_ack(2, True)
    assert first.told == [None]
    assert [type(problem) for problem in second.told] == [Unroutable]


def test_two_that_are_the_same_come_back_one_after_the_other(
    publisher: ConfirmingPublisher,
) -> None:
    twins = [Published(publisher, b"[]", id="a") for _ in range(2)]
    twins[0].comes_back(publisher)
    twins[1].comes_back(publisher)
    publisher._unconfirmed.on_ack(2, True)
    assert [type(twin.told[0]) for twin in twins] == [Unroutable, Unroutable]


def test_messages_are_kept_if_nobody_knows_which_one_came_back(
    publisher: ConfirmingPublisher,
) -> None:
    both = [Published(publisher, b"[]", id=n) for n in range(2)]
    publisher._on_return(None, "", "letters", Message(b"changed on its way"))
    publisher._unconfirmed.on_ack(2, True)
    assert [type(each.told[0]) for each in both] == [Unroutable, Unroutable]


def test_returned_message_is_looked_for_again(publisher: ConfirmingPublisher) -> None:
    publisher.link.declared.add("letters")
    Published(publisher, b"[]", id="a").comes_back(publisher)
    assert "letters" not in publisher.link.declared
