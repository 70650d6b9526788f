"""What is shipped: metadata that an index can show, and a sdist that has what its tests need."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_resilience import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def hook() -> Any:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def test_readmes_links_on_an_index_are_absolute_and_lead_to_files(hook) -> None:
    text = hook.for_an_index(README, "https://forge.example/us/project", "v0.1.0")
    assert len(links(text)) == len(links(README)) > 5
    for link in links(text):
        found = re.fullmatch(
            r"https://forge\.example/us/project/(?:blob|raw)/v0\.1\.0/([^#]+)(?:#.*)?", link
        )
        assert found, link
        assert (ROOT / found[1]).is_file(), link
        assert ("/raw/" in link) == link.endswith(".svg")


def test_readmes_links_lead_nowhere_only_where_no_home_is_known(hook) -> None:
    text = hook.for_an_index(README, "", "v0.1.0")
    assert links(text) == []
    assert "what happens when" in text
    assert "docs/flow.svg" not in text


def test_code_is_no_link(hook) -> None:
    text = "```python\nx[1](y)\n```\n[a](b.md)"
    assert hook.for_an_index(text, "", "v1") == "```python\nx[1](y)\n```\na"


def test_metadata_name_who_and_where(hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT_URL", "https://forge.example/us/project/")
    metadata: dict[str, Any] = {"version": "0.1.0"}
    hook.Metadata(str(ROOT), {}).update(metadata)
    assert metadata["urls"]["Changelog"].startswith("https://forge.example/us/project/blob/")
    assert metadata["readme"]["content-type"] == "text/markdown"
    assert PROJECT["project"]["authors"]
    monkeypatch.delenv("PROJECT_URL")
    hook.Metadata(str(ROOT), {}).update(metadata)
    assert metadata["urls"] == {}


def test_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "celery_resilience/__init__.py"
    source = (ROOT / "celery_resilience/__init__.py").read_text(encoding="utf-8")
    assert f'\n__version__ = "{__version__}"\n' in source


def test_changelog_is_dated_and_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0].split()[0] == __version__
    for heading in released:
        assert re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading), heading
    assert "Unreleased" not in headings[1:]


def test_every_dependency_of_celerys_kind_has_an_upper_bound() -> None:
    """We rely on what is private in them: a version that nobody has tried is not installed."""
    stated = [*PROJECT["project"]["dependencies"]]
    stated += PROJECT["project"]["optional-dependencies"]["redis"]
    for package in ("amqp", "billiard", "celery", "kombu", "redis"):
        found = [each for each in stated if re.match(rf"{package}\b", each)]
        assert found, package
        assert all("<" in each for each in found), found


def test_metadata_is_complete() -> None:
    project = PROJECT["project"]
    for field in ("name", "description", "license", "authors", "keywords", "requires-python"):
        assert project[field], field
    assert {"readme", "urls", "version"} == set(project["dynamic"])
    pythons = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PYTHONS = {' '.join(pythons)}\n" in makefile
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    cells = workflow["jobs"]["cell"]["strategy"]["matrix"]
    assert cells["python"] == pythons
    assert f"CELERIES = {' '.join(cells['celery'])}\n" in makefile


def test_workflow_fetches_the_history_that_tests_unpack() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    for name, job in workflow["jobs"].items():
        (checkout,) = [step for step in job["steps"] if "checkout" in step.get("uses", "")]
        assert checkout["with"]["fetch-depth"] == 0, name
    assert "git fetch --quiet --unshallow" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_extras_that_the_readme_installs_exist() -> None:
    wheel = f"celery_resilience-{__version__}-py3-none-any.whl"
    assert f"dist/{wheel}[redis]" in README
    extras = set(re.findall(r"\[(\w+)\]'", README))
    assert {"redis", "demo"} <= extras <= set(PROJECT["project"]["optional-dependencies"])


def test_examples_line_needs_no_new_pip() -> None:
    """Dependency groups came with pip 25.1; an extra works with any."""
    (line,) = re.findall(r"`(pip install [^`]*)`", (ROOT / "examples/README.md").read_text())
    assert line == "pip install -e '.[examples]'"
    assert "django" in " ".join(PROJECT["project"]["optional-dependencies"]["examples"])


def test_checkout_has_what_its_tests_need() -> None:
    """Run from an unpacked sdist by ``make build``, this says whether all of it was shipped."""
    for name in (
        "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile", "docker-compose.yml", "constraints.txt",
        "Makefile", "LICENSE", "hatch_build.py", ".ci/run", ".github/workflows/ci.yml",
        "SECURITY.md", ".pre-commit-config.yaml", "docs/conf.py",
        "benchmarks/README.md", "docs/flow.svg", "docs/generate.py", "examples/README.md",
    ):  # fmt: skip
        assert (ROOT / name).is_file(), f"{name} is missing"
