"""The part of the fault matrix that every change has to pass; ``make faults`` plays all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.row import Cell, cells
from tests.faults.scene import APP, Servers, play
from tests.worker import ROOT

CELLS = [cell for cell in cells() if f"{cell.broker}/{cell.pool}" in cell.row.ci]
#: Those that are played on RabbitMQ 4 too; ``make faults RABBITMQ=4`` plays all of them there.
ON_4 = list(cells(["7-retry", "9-warm"], ["rabbitmq-quorum"], ["prefork"]))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell_loses_nothing(cell: Cell, servers: Servers, tmp_path: Path) -> None:
    """Every task is in exactly one place, and ran no more often than the row allows."""
    count = play(cell, servers, tmp_path)
    assert count.kept, f"{cell.row.what}: {count}"


@pytest.mark.parametrize("cell", ON_4, ids=str)
def test_cell_loses_nothing_on_rabbitmq_4(cell: Cell, servers4: Servers, tmp_path: Path) -> None:
    """The same on the newest broker."""
    test_cell_loses_nothing(cell, servers4, tmp_path)


def test_ci_names_cells_that_there_are() -> None:
    """A misspelt cell would never be played."""
    for cell in cells():
        known = {f"{broker}/{pool}" for broker in cell.row.brokers for pool in cell.row.pools}
        assert set(cell.row.ci) <= known, cell.row.name


@pytest.mark.parametrize(("stock", "late"), [("", True), ("early", False), ("late", True)])
def test_messages_are_acknowledged_when_the_rows_think(stock: str, late: bool) -> None:
    """A setting that the app writes for stock Celery holds for our worker too: rows would then
    count what nobody has promised, or look at nothing."""
    script = (
        f"from {APP} import app; app.finalize(); "
        "ours = [t for name, t in app.tasks.items() if name.startswith('tests.')]; "
        "print(*[t.name for t in ours if t.acks_late]); print(*[t.name for t in ours])"
    )
    environment = {**os.environ, "STOCK": stock, "BROKER_URL": "memory://", "CONF": "{}"}
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment, check=True, timeout=60, capture_output=True, text=True,
    )  # fmt: skip
    found, known = (set(line.split()) for line in said.stdout.splitlines())
    assert f"{APP}.good" in known
    assert found == (known - {f"{APP}.early"} if late else set())
