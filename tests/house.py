"""``python -m tests.house``: the rooms of the package, its floors, and imports that point up.

A room is a module at the top of the package, or one of its packages; the floors are those of
``tests/unit/test_house.py``, where a module imports its own floor or a lower one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.unit.test_house import FLOORS, MODULES, floor, imports, name_of

__all__ = ["circles", "main", "room_of"]

_PACKAGE = "celery_resilience"


def room_of(module: str) -> str:
    """The room that *module* lies in."""
    return module.partition(".")[0]


def edges() -> set[tuple[str, str]]:
    """Which module imports which, within the package."""
    found = set()
    for path in MODULES:
        for imported in imports(path):
            top, _, rest = imported.partition(".")
            if top == _PACKAGE and name_of(path) != (rest or "__init__"):
                found.add((name_of(path), rest or "__init__"))
    return found


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
    for path in MODULES:
        room = room_of(name_of(path))
        files[room] += 1
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    found = edges()
    up = sorted((a, b) for a, b in found if floor(b) > floor(a))
    for number in FLOORS:
        here = [room for room in files if floor(room) == number]
        print(f"floor {number}: {len(here)} rooms, {sum(lines[room] for room in here)} lines")
        print("  " + "  ".join(f"{r} ({files[r]})" if files[r] > 1 else r for r in sorted(here)))
    for circle in (rounds := circles(found)):
        print(f"circle of {len(circle)}: {', '.join(circle)}")
    for a, b in up:
        print(f"up: {a} (floor {floor(a)}) imports {b} (floor {floor(b)})")
    print(
        f"{len(files)} rooms in {len(MODULES)} files, {sum(lines.values())} lines, "
        f"{len(FLOORS)} floors, {len(found)} imports, {len(up)} upward, "
        f"{len(rounds)} circles"
    )


if __name__ == "__main__":
    main()
