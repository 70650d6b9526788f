"""``python -m tests.house``: the rooms of the package, its floors, and imports that point up.

A room is a module at the top of the package, or one of its packages; each is a floor, in the order
of ``tests/unit/test_layers.py``, and imports itself and the floors below it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.unit.test_layers import GRAPH, LAYERS, PACKAGE, name_of, wrong_imports

__all__ = ["circles", "main", "room_of"]


def room_of(module: str) -> str:
    """The room that *module* lies in."""
    return module.partition(".")[0]


def circles(found: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The sets of modules that import one another, directly or not."""
    graph: dict[str, set[str]] = defaultdict(set)
    for a, b in found:
        graph[a].add(b)
    reach = {module: _reached(module, graph) for module in [*graph]}
    together = {
        frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]
    }
    return sorted(map(sorted, together))


def _reached(module: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [*graph[module]]
    while ahead:
        if (here := ahead.pop()) not in seen:
            seen.add(here)
            ahead += graph.get(here, ())
    return seen


def main() -> None:
    """Print the house."""
    files: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    for path in PACKAGE.rglob("*.py"):
        room = room_of(name_of(path))
        files[room] += 1
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    for number, room in enumerate(LAYERS, 1):
        print(f"floor {number:2}: {room:10} {files[room]:3} files {lines[room]:6} lines")
    found = [(a, b) for a, imported in GRAPH.items() for b in imported]
    for circle in (rounds := circles(found)):
        print(f"circle of {len(circle)}: {', '.join(circle)}")
    for each in (up := wrong_imports(GRAPH)):
        print(f"up, or between two who stay apart: {each}")
    print(
        f"{len(LAYERS)} rooms in {len(GRAPH)} files, {sum(lines.values())} lines, "
        f"{len(found)} imports, {len(up)} upward, {len(rounds)} circles"
    )


if __name__ == "__main__":
    main()
