"""``celery-resilience demo``: tasks that fail in every way services do, and all succeed.

Real parts only: a broker, a ``celery worker``, HTTP. `app` is what a user writes, `services` are
what fails, `ledger` counts what the tasks tell, `stage` starts and ends the broker and the worker,
`interrupts` heeds Ctrl-C; `play` is the demo itself, `screen` shows it.
"""

from __future__ import annotations

import click

from celery_resilience.demo.interrupts import Interrupted, Signals
from celery_resilience.errors import BrokerError

__all__ = ["demo"]

#: Something that the demo needs is not there, as ``celery status`` says it.
_UNAVAILABLE = 69


@click.command(
    epilog="Exit codes: 0 every task has succeeded; 1 some have not; 69 no broker; "
    "130 Ctrl-C, 143 SIGTERM."
)
@click.option(
    "--broker",
    metavar="URL",
    envvar="CELERY_BROKER_URL",
    show_envvar=True,
    help="A Redis or RabbitMQ to run on. Only the demo's own queues are touched. "
    "Without it a private Valkey or Redis is started.",
)
@click.option(
    "--tasks",
    type=click.IntRange(min=1, max=1000),
    default=200,
    show_default=True,
    help="How many tasks to send.",
)
def demo(broker: str | None, tasks: int) -> None:
    """See it work: tasks that fail, are retried, dead-lettered, replayed, and all succeed.

    A real worker calls six services over HTTP that fail in six ways; half a minute, and nothing
    is left running.
    """
    with Signals() as signals:
        # Here, so that --help is quick, and a Ctrl-C in the first second is heeded.
        from celery_resilience.demo.play import play
        from celery_resilience.demo.stage import WorkerEnded

        try:
            all_succeeded = play(broker, tasks, signals)
        except BrokerError as exc:
            code, message = _UNAVAILABLE, str(exc)
        except WorkerEnded as exc:
            code, message = 1, str(exc)
        except Interrupted as exc:
            code, message = 128 + exc.number, f"ended by {exc}; nothing is left running"
        else:
            raise SystemExit(0 if all_succeeded else 1)
        click.echo(f"Error: {message}" if code < 128 else f"\n{message}", err=True)
        raise SystemExit(code)
