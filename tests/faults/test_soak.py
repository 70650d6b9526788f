"""Half a minute of random faults; ``make soak`` takes ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scene import Servers
from tests.faults.soak import soak


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["redis"])
def test_random_deaths_lose_nothing(broker: str, servers: Servers, tmp_path: Path) -> None:
    """Every task is in one place in the end; an execution may double."""
    run, count = soak(servers, tmp_path, broker, "prefork", seed=7, seconds=25)
    assert count.kept, f"{dict(run.happened)}: {count}"
