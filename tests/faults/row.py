"""One row of the fault matrix, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.scene import Scene

__all__ = ["ALL", "EVERYWHERE", "OURS", "RABBITS", "REDIS", "Cell", "Row", "cells", "row", "rows"]

RABBITS = ("rabbitmq-classic", "rabbitmq-quorum")
#: Workers take through our own transport: by default, and because the URL says so.
OURS = ("redis", "resilient-redis")
#: And through kombu's, which is what they fall back to.
REDIS = (*OURS, "kombu-redis")
ALL = (*REDIS, *RABBITS)
#: Every pool that Celery has, but for those that nobody maintains.
EVERYWHERE = ("prefork", "threads", "solo", "gevent")

_MODULES = (
    "messages",
    "deaths",
    "limits",
    "outages",
    "connections",
    "shutdowns",
    "drops",
    "canvas",
    "waiting",
    "hangs",
)
_rows: dict[str, Row] = {}


@dataclass(frozen=True)
class Row:
    """A fault and what has to become of the tasks that meet it."""

    #: ``2-segfault``: the row of the matrix, and which of its faults.
    name: str
    #: The fault in a few words.
    what: str
    run: Callable[[Scene], None]
    brokers: tuple[str, ...] = ALL
    pools: tuple[str, ...] = ("prefork",)
    #: How often more than it asked for each body may start.
    doubles: int = 0
    #: Whether a message may live on twice on RabbitMQ: there is no step that both publishes a copy
    #: and lets the original go, and the broker may die in between.
    forks: bool = False
    #: Whether workers die, or their connections: between kombu's own pop and its note of who holds
    #: the message, its transport may lose one each time.
    window: bool = False
    #: ``broker/pool`` of the cells that CI runs; the others are for the whole matrix.
    ci: tuple[str, ...] = ()
    #: How long its tasks may take to come to their ends, in seconds.
    patience: float = 60.0


@dataclass(frozen=True)
class Cell:
    """One row on one broker with one pool."""

    row: Row
    broker: str
    pool: str

    def __str__(self) -> str:
        return f"{self.row.name}-{self.broker}-{self.pool}"


def row(name: str, what: str, **options: object) -> Callable[[Callable[[Scene], None]], Row]:
    """Make the decorated fault a row of the matrix."""

    def make(run: Callable[[Scene], None]) -> Row:
        assert name not in _rows, name
        _rows[name] = made = Row(name, what, run, **options)
        return made

    return make


def rows() -> list[Row]:
    """Every row, in the order of the matrix."""
    for module in _MODULES:
        import_module(f"tests.faults.rows_{module}")
    return sorted(_rows.values(), key=lambda each: (int(each.name.split("-")[0]), each.name))


def cells(
    names: Iterable[str] = (), brokers: Iterable[str] = (), pools: Iterable[str] = ()
) -> Iterator[Cell]:
    """The cells of the matrix; *names* picks rows (``2``, ``2-segfault``), and so on."""
    wanted, some_brokers, some_pools = list(names), list(brokers), list(pools)
    for each in rows():
        if wanted and each.name not in wanted and each.name.split("-")[0] not in wanted:
            continue
        for broker in each.brokers:
            for pool in each.pools:
                if some_brokers and broker not in some_brokers:
                    continue
                if some_pools and pool not in some_pools:
                    continue
                yield Cell(each, broker, pool)
