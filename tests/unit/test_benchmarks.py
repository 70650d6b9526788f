"""What the benchmarks make of their figures; they themselves are run by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``plot`` and ``side``, which find each other as scripts do."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("plot"), importlib.import_module("side")
    for name in ("plot", "side"):
        sys.modules.pop(name, None)


def test_cost_that_does_not_grow_is_a_level_line(benchmarks: Any) -> None:
    """Both axes are logarithmic: ten times as many are as far each time, and as high."""
    plot, side = benchmarks
    rows = [
        side.Row("broker", "ours", "rss", n, 60.0, "MiB")
        for n in (1_000, 10_000, 100_000, 1_000_000)
    ] + [side.Row("worker", "stock", "rss", n, n / 100, "MiB") for n in (1_000, 10_000)]
    picture = ElementTree.fromstring(plot.draw(rows))
    level = [dot for dot in picture.iter(f"{SVG}circle") if dot.get("class") == "ours"]
    rising = [dot for dot in picture.iter(f"{SVG}circle") if dot.get("class") == "stock"]
    assert len({dot.get("cy") for dot in level}) == 1
    steps = [float(dot.get("cx") or 0) for dot in level]
    assert steps[1] - steps[0] == pytest.approx(steps[3] - steps[2], abs=0.2)
    assert float(rising[1].get("cy") or 0) < float(rising[0].get("cy") or 0)


def test_percentile_is_one_of_the_values(benchmarks: Any) -> None:
    _, side = benchmarks
    values = [float(n) for n in range(100, 0, -1)]
    assert [side.percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert side.percentile([7.0], 50) == 7


def test_figure_holds_within_its_limits_alone(benchmarks: Any) -> None:
    _, side = benchmarks
    figure = side.Row("late", "ours", "p99", 1, 50.0, "ms")
    assert figure.holds is None
    assert figure._replace(most=50).holds
    assert not figure._replace(most=49.9).holds
    assert not figure._replace(least=60).holds
    assert figure._replace(least=0, most=0).holds is False


def test_fleet_is_put_beside_kombus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    fleet = importlib.import_module("fleet")
    sys.modules.pop("fleet")
    assert fleet.middle([(1, 2.0, 9.0), (3, 1.0, 7.0), (2, 3.0, 8.0)]) == (2, 2.0, 8.0)
    kombus = (50.0, 0.2, 2.0)
    fleet.compare(50, 0, {"kombu": kombus, "ours": (100.0, 0.4, 7.0), "refused": (90.0, 0.5, 9.0)})
    ours, refused = capsys.readouterr().out.splitlines()
    assert ours.endswith("commands 2.00 x, core 2.00 x, p50 +5.0 ms: holds")
    assert refused.endswith("commands 1.80 x, core 2.50 x, p50 +7.0 ms: misses core, p50")
    fleet.compare(50, 0, {"ours": kombus})
    assert not capsys.readouterr().out
