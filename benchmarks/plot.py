"""The plot of ``waiting.py``: how each cost grows with the number of retries that wait.

    python benchmarks/plot.py figures.json docs/waiting.svg

Six panels, both axes logarithmic: a line that stays level is a cost that does not grow.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from side import Row


class Line(NamedTuple):
    """One line: the figures *what* of *side* in *section*, of the class that gives its colour."""

    section: str
    side: str
    what: str
    look: str


class Panel(NamedTuple):
    title: str
    unit: str
    lines: list[Line]


PANELS = [
    Panel(
        "A fresh task, sent to begun",
        "ms",
        [
            Line("broker", "ours", "fresh p50", "ours"),
            Line("broker", "ours", "fresh p99", "ours tail"),
            Line("worker", "stock", "fresh p50", "stock"),
            Line("worker", "stock", "fresh p99", "stock tail"),
        ],
    ),
    Panel(
        "The worker's main process",
        "MiB",
        [Line("broker", "ours", "rss", "ours"), Line("worker", "stock", "rss", "stock")],
    ),
    Panel("Memory in Redis for each", "bytes", [Line("broker", "ours", "memory", "ours")]),
    Panel(
        "Letting one more wait",
        "ms",
        [
            Line("broker", "ours", "hold p50", "ours"),
            Line("broker", "ours", "hold p99", "ours tail"),
        ],
    ),
    Panel(
        "Moving a hundred that are due",
        "ms",
        [
            Line("broker", "ours", "move call p50", "ours"),
            Line("broker", "ours", "move call p99", "ours tail"),
        ],
    ),
    Panel(
        "How late they come",
        "ms",
        [
            Line("broker", "ours", "late, 1 mover p50", "ours"),
            Line("broker", "ours", "late, 1 mover p99", "ours tail"),
        ],
    ),
]
LEGEND = [
    (52, "ours", "ours, p50"),
    (152, "ours tail", "ours, p99"),
    (262, "stock", "stock's countdowns, p50"),
    (442, "stock tail", "stock's, p99"),
]

_WIDTH, _HEIGHT, _ACROSS = 300, 190, 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 30
_HEAD = 44

#: An image takes its colours from the reader's scheme, so it brings its own background as well.
_STYLE = """
text { font: 11px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
.title { font-size: 12.5px; font-weight: 600; fill: #1f2328 }
.paper { fill: #ffffff }
.grid { stroke: #d8dee4; stroke-width: 1 }
.ours { stroke: #0969da; fill: #0969da }
.stock { stroke: #bc4c00; fill: #bc4c00 }
path { fill: none !important; stroke-width: 2; stroke-linejoin: round }
path.tail { stroke-width: 1.5; stroke-dasharray: 5 3 }
circle { stroke: none !important }
@media (prefers-color-scheme: dark) {
text { fill: #9198a1 }
.title { fill: #f0f6fc }
.paper { fill: #0d1117 }
.grid { stroke: #30363d }
.ours { stroke: #4493f8; fill: #4493f8 }
.stock { stroke: #f0883e; fill: #f0883e }
}
"""


def draw(rows: Iterable[Row]) -> str:
    """The SVG of *rows*; a line without figures is left out."""
    known = {(row.section, row.side, row.what, row.waiting): row.value for row in rows}
    width = _ACROSS * _WIDTH
    height = _HEAD + math.ceil(len(PANELS) / _ACROSS) * _HEIGHT + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>What waiting retries cost, by how many wait</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="6"/>',
        *legend(),
    ]
    for number, panel in enumerate(PANELS):
        x = number % _ACROSS * _WIDTH
        y = _HEAD + number // _ACROSS * _HEIGHT
        lines = []
        for line in panel.lines:
            points = [
                (n, value)
                for (*which, n), value in sorted(known.items())
                if tuple(which) == line[:3] and n > 0 and value > 0
            ]
            if points:
                lines.append((line.look, points))
        parts.append(f'<g transform="translate({x} {y})">')
        parts += frame(panel, lines)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def legend() -> Iterator[str]:
    for x, look, text in LEGEND:
        yield f'<path class="{look}" d="M{x} 22h26"/>'
        yield f'<text x="{x + 32}" y="26">{text}</text>'
    x = _ACROSS * _WIDTH - _RIGHT
    yield f'<text x="{x}" y="26" text-anchor="end">across: how many wait</text>'


def frame(panel: Panel, lines: list[tuple[str, list[tuple[int, float]]]]) -> Iterator[str]:
    """One panel: title, decades as a grid, and its lines."""
    yield f'<text class="title" x="{_LEFT}" y="16">{panel.title}, {panel.unit}</text>'
    if not lines:
        return
    numbers = [n for _, points in lines for n, _ in points]
    values = [value for _, points in lines for _, value in points]
    x_low, x_high = decades(numbers)
    y_low, y_high = decades(values)

    def across(n: float) -> float:
        part = (math.log10(n) - x_low) / (x_high - x_low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        part = (math.log10(value) - y_low) / (y_high - y_low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    for power in range(y_low, y_high + 1):
        y = up(10**power)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{short(10**power)}</text>'
    for power in range(x_low, x_high + 1):
        x = across(10**power)
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        text = short(10**power)
        y = _HEIGHT - _BOTTOM + 15
        yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{text}</text>'
    for look, points in lines:
        places = [(across(n), up(value)) for n, value in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path class="{look}" d="M{path}"/>'
        yield from (
            f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places
        )


def decades(values: Iterable[float]) -> tuple[int, int]:
    """The powers of ten around *values*, three at least: noise is not to look like growth."""
    values = list(values)
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = math.ceil(math.log10(max(values)) - 1e-9)
    while high - low < 2:
        low, high = (low - 1, high) if high - low == 1 else (low, high + 1)
    return low, high


def short(number: float) -> str:
    """1000 as 1k."""
    for power, letter in ((6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:g}{letter}"
    return f"{number:g}"


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    rows = [{name: row[name] for name in Row._fields} for row in json.loads(source.read_text())]
    target.write_text(draw(Row(**row) for row in rows))


if __name__ == "__main__":
    main()
