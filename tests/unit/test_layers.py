"""Which package may import which: only what lies before it, and no circles."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "celery_resilience"

#: What lies at the top of the package. Each imports itself and those before it.
LAYERS = [
    "errors",
    "classify",
    "policy",
    "messages",
    "brokers",
    "transport",
    "settings",
    "task",
    "worker",
    "operate",
    "install",
    "testing",
    "cli",
    "demo",
]
#: They do not know each other.
APART = ({"operate", "worker"}, {"transport", "task"})
#: They import the standard library alone.
PURE = ("errors", "classify", "policy")
#: The package itself shows what others have: it imports as ``cli`` does, and is imported as
#: ``install`` is.
SHOWS, SHOWN = "cli", "install"

#: A module by its name, and what it imports.
Graph = Mapping[str, set[str]]


def name_of(path: Path, package: Path = PACKAGE) -> str:
    """A module's name without the package's; empty for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, modules: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """What *source* imports, wherever that stands: of us the module, of others the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, _, rest = alias.name.partition(".")
                yield (top, rest)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"line {node.lineno}: a relative import"
            assert not node.level, f"line {node.lineno}: a relative import"
            top, _, rest = node.module.partition(".")
            for name in node.names:  # ``from package import x``: x may be a module, or in it
                inner = f"{rest}.{name.name}".lstrip(".")
                yield (top, inner if top == PACKAGE.name and inner in modules else rest)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Which module of *package* imports which, type-only imports included."""
    sources = {name_of(path, package): path.read_text() for path in package.rglob("*.py")}
    return {
        module: {
            inner for top, inner in imports(source, sources) if top == PACKAGE.name
        } - {module}
        for module, source in sources.items()
    }  # fmt: skip


def unknown(graph: Graph) -> list[str]:
    """Modules that no layer has, layers that have no module, imports of what is not there."""
    tops = {module.partition(".")[0] for module in graph if module}
    found = [f"{top} has no layer" for top in sorted(tops - {*LAYERS})]
    found += [f"there is no {layer}" for layer in LAYERS if layer not in tops]
    return found + [
        f"{module or PACKAGE.name} -> {other}, which is not there"
        for module, imported in sorted(graph.items())
        for other in sorted(imported - {*graph})
    ]


def wrong_imports(graph: Graph) -> list[str]:
    """Imports that point up, or between two who stay apart."""
    found = []
    for module, imported in sorted(graph.items()):
        own = module.partition(".")[0] or SHOWS
        for other in sorted(imported & {*graph}):
            its = other.partition(".")[0] or SHOWN
            if LAYERS.index(its) > LAYERS.index(own) or {own, its} in APART:
                found.append(f"{module or PACKAGE.name} -> {other or PACKAGE.name}")
    return found


def impure(package: Path) -> list[str]:
    """Imports of others' packages where the standard library has to do."""
    return [
        f"{name_of(path, package)} -> {top}"
        for path in sorted(package.rglob("*.py"))
        if name_of(path, package).partition(".")[0] in PURE
        for top, _ in imports(path.read_text(), {})
        if top != PACKAGE.name and top not in sys.stdlib_module_names
    ]


def circle(graph: Graph) -> list[str]:
    """Modules that import one another, if there are any."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


GRAPH = graph_of(PACKAGE)


def test_every_module_has_a_layer_and_every_layer_a_module() -> None:
    assert unknown(GRAPH) == []


def test_imports_point_down() -> None:
    assert wrong_imports(GRAPH) == []


def test_lowest_layers_import_the_standard_library_alone() -> None:
    assert impure(PACKAGE) == []


def test_files_are_in_no_circle() -> None:
    assert circle(GRAPH) == []


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=name_of)
def test_package_says_in_three_sentences_what_lives_there(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(re.findall(r"[.](?:\s|$)", said)) >= 3


# The rule refuses


@pytest.fixture
def house(tmp_path: Path) -> Callable[..., Path]:
    """A package of one empty module a layer, and of those whose source is given."""

    def build(**sources: str) -> Path:
        package = tmp_path / PACKAGE.name
        files = {f"{layer}/__init__": "" for layer in LAYERS} | {"__init__": ""}
        for name, source in (files | sources).items():
            path = package / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return package

    return build


def test_house_without_imports_is_in_order(house: Callable[..., Path]) -> None:
    graph = graph_of(house())
    assert (unknown(graph), wrong_imports(graph), circle(graph)) == ([], [], [])


def test_import_that_points_up_is_refused(house: Callable[..., Path]) -> None:
    inside = "def f():\n    from celery_resilience.settings import Settings\n"
    assert wrong_imports(graph_of(house(base__in__brokers="", brokers__in__base=inside))) == [
        "brokers.base -> settings"
    ]


def test_import_of_the_whole_package_is_refused_below_it(house: Callable[..., Path]) -> None:
    graph = graph_of(house(task__in__base="from celery_resilience import Policy"))
    assert wrong_imports(graph) == ["task.base -> celery_resilience"]


@pytest.mark.parametrize(
    ("module", "imported"),
    [("operate", "worker"), ("worker", "operate"), ("task", "transport"), ("transport", "task")],
)
def test_import_between_those_who_stay_apart_is_refused(
    house: Callable[..., Path], module: str, imported: str
) -> None:
    source = f"from celery_resilience import {imported}"
    graph = graph_of(house(**{f"{module}__in__x": source}))
    assert wrong_imports(graph) == [f"{module}.x -> {imported}"]


def test_circle_of_types_is_refused(house: Callable[..., Path]) -> None:
    typed = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import celery_resilience.task.b"
    )
    package = house(task__in__a=typed, task__in__b="from celery_resilience.task.a import x")
    assert {*circle(graph_of(package))} == {"task.a", "task.b"}


def test_module_that_no_layer_has_is_refused(house: Callable[..., Path]) -> None:
    assert unknown(graph_of(house(helpers=""))) == ["helpers has no layer"]


def test_layer_that_has_no_module_is_refused(house: Callable[..., Path]) -> None:
    package = house()
    (package / "demo" / "__init__.py").unlink()
    assert unknown(graph_of(package)) == ["there is no demo"]


@pytest.mark.parametrize("imported", ["nowhere", "task.nowhere"])
def test_import_of_a_module_that_is_not_there_is_refused(
    house: Callable[..., Path], imported: str
) -> None:
    source = f"from celery_resilience.{imported} import x"
    graph = graph_of(house(worker__in__x=source))
    assert unknown(graph) == [f"worker.x -> {imported}, which is not there"]
    assert wrong_imports(graph) == []


def test_foreign_package_in_a_low_layer_is_refused(house: Callable[..., Path]) -> None:
    package = house(policy__in__x="import celery", task__in__x="import celery")
    assert impure(package) == ["policy.x -> celery"]
