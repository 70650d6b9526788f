"""An app that uses its worker as an operator of years does: a step of its own, beat, other apps."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, bootsteps
from kombu import Consumer, Queue

from celery_resilience import install

BROKER = os.environ["BROKER_URL"]

app = Celery("fleet", broker=BROKER, backend=os.environ["BACKEND_URL"])
app.conf.update(
    task_default_queue="fleet",
    broker_connection_retry_on_startup=True,
    broker_transport_options={"client_name": "fleet", "priority_steps": [0, 5]},
    beat_schedule={"ticks": {"task": "fleet.ticks", "schedule": 0.5}},
)
install(app)
other = Celery("other", broker=BROKER, backend=os.environ["BACKEND_URL"], set_as_current=False)


def record(*words: Any) -> None:
    with open(os.environ["RECORD"], "a") as file:
        file.write(" ".join(str(word) for word in words) + "\n")


def transports() -> list[str]:
    """The modules of the transports that anybody in this process sends and asks through."""
    connections = [app.connection(), app.connection_for_read(), other.connection_for_write()]
    made = [type(each.transport).__module__ for each in connections]
    for each in (app, other):
        with each.producer_or_acquire() as producer:
            made.append(type(producer.connection.transport).__module__)
    return made


class Listens(bootsteps.ConsumerStep):  # type: ignore[misc]
    """What the docs of Celery show: messages of another protocol, on the worker's connection."""

    def get_consumers(self, channel: Any) -> list[Consumer]:
        queue = Queue("letters", routing_key="letters")
        return [Consumer(channel, [queue], on_message=self.heard, accept=["json"])]

    def heard(self, message: Any) -> None:
        record("heard", message.payload)
        message.ack()


class Publishes(bootsteps.StartStopStep):  # type: ignore[misc]
    """Declares and publishes on ``c.connection`` itself."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, c: Any) -> None:
        with c.connection.Producer() as producer:
            producer.publish("from a step", exchange="", routing_key="letters", serializer="json")
        record("step", type(c.connection.transport).__module__, *transports())


app.steps["consumer"] |= {Listens, Publishes}


@app.task(name="fleet.ticks")
def ticks() -> None:
    record("tick")


@app.task(name="fleet.works", bind=True)
def works(self: Any, name: str) -> str:
    record("ran", name, *transports())
    return str(self.request.hostname)
