"""The worker's flags, in a help group of their own; each has a setting of the same name.

Celery reads each from the environment too: ``CELERY_WORKER_`` and the flag's name. A flag
overrules its variable, and that the setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from celery_resilience.settings import queue_name

if TYPE_CHECKING:
    import click

__all__ = ["FLAGS", "add_flags", "names"]

#: The settings that have a flag of their own name; ``--no-resilience`` is another word for one.
FLAGS = (
    "dead_letter_queue", "failure_policies", "max_worker_losses", "dead_letter_expired",
    "hold_retries", "redis_transport",
)  # fmt: skip
_GROUP = "Resilience Options"


def add_flags(app: Any) -> None:
    """Teach ``celery -A app worker`` our flags; calling it again changes nothing."""
    options = app.user_options["worker"]
    if not isinstance(options, _WithOurs):
        app.user_options["worker"] = _WithOurs(options)


def names() -> set[str]:
    """Our flags, as they are typed."""
    return {name for flag in _flags() for name in flag.opts}


class _WithOurs(set[Any]):
    """The worker's options, and ours once they are read: that is Celery's command line.

    A program that only sends tasks has no need of that, and to load it takes as long as to load
    the rest of us.
    """

    _is_complete = False

    def __iter__(self) -> Iterator[Any]:
        if not self._is_complete:
            self._is_complete = True
            self.update(_flags())
        return super().__iter__()


def _flags() -> list[Any]:
    import click

    return [
        _flag(
            "--dead-letter-queue",
            "Queue for dead letters; {queue} is replaced by the queue of the message.",
            metavar="QUEUE",
            callback=_queue_name,
        ),
        _flag(
            "--failure-policies",
            "Read policies from the TOML file FILE; they overrule those in the code.",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False),
        ),
        _flag(
            "--max-worker-losses",
            "Turn a message into a dead letter once it has crashed its process N times.",
            metavar="N",
            type=click.IntRange(min=1),
        ),
        _flag(
            "--dead-letter-expired",
            "Turn expired tasks into dead letters; otherwise they are dropped.",
            is_flag=True,
        ),
        _flag(
            "--hold-retries",
            "Where scheduled retries wait: auto: in the broker, where it can hold them; worker: in "
            "a worker, as Celery's countdown.",
            metavar="auto|worker",
            type=click.Choice(["auto", "worker"]),
        ),
        _flag(
            "--redis-transport",
            "Transport to take from Redis with: auto: our own, kombu's where that is impossible; "
            "own: our own, or do not start; kombu: kombu's, which may lose the message that a "
            "killed worker is taking.",
            metavar="auto|own|kombu",
            type=click.Choice(["auto", "own", "kombu"]),
        ),
        _flag(
            "--no-resilience",
            "Let stock Celery decide about failures; nothing becomes a dead letter. Scheduled "
            "retries still run when due.",
            setting="resilience_enabled",
            is_flag=True,
        ),
    ]


def _flag(name: str, text: str, setting: str | None = None, **options: Any) -> Any:
    from celery.bin.base import CeleryOption

    if setting is None:
        setting = "resilience_" + name.removeprefix("--").replace("-", "_")
    return CeleryOption(
        (name,),
        default=None,
        show_envvar=True,
        help_group=_GROUP,
        help=f"{text} [setting: {setting}]",
        **options,
    )


def _queue_name(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    import click

    try:
        return None if value is None else queue_name(value, "it")
    except Exception as exc:
        raise click.BadParameter(str(exc)) from exc
