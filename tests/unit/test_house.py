"""The house rules that a machine can check."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import celery_resilience
from tests.unit.test_layers import name_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "celery_resilience"

LONGEST_MODULE = 300


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_fits_in_one_head(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_MODULE, f"{name_of(path)} has {lines} lines: split it by concept"


def test_every_public_name_says_what_it_is():
    for name in celery_resilience.__all__:
        thing = getattr(celery_resilience, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            documentation = thing.__doc__ or ""
            # A dataclass without a docstring is given its signature for one.
            assert documentation.strip(), f"{name} has no docstring"
            assert not documentation.startswith(f"{name}("), f"{name} has no docstring"


def test_public_names_are_sorted_and_exist():
    assert list(celery_resilience.__all__) == sorted(celery_resilience.__all__)
    for name in celery_resilience.__all__:
        assert hasattr(celery_resilience, name), name


def test_composition_has_its_services():
    composition = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = composition["services"]
    assert set(services) == {"redis", "rabbitmq", "worker", "demo"}
    for name in ("redis", "rabbitmq"):
        assert services[name]["image"].startswith(f"{name}:")
        assert services[name]["healthcheck"]["test"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    for name in ("worker", "demo"):
        assert (ROOT / services[name]["build"] / "Dockerfile").is_file()
        assert services[name]["depends_on"]["redis"] == {"condition": "service_healthy"}
    app = re.search(r"celery -A (\S+) worker", services["worker"]["command"])
    assert app is not None
    assert (ROOT / app[1].replace(".", "/")).with_suffix(".py").is_file()
    assert services["demo"]["command"].startswith("celery-resilience demo")


def test_docker_accepts_the_composition():
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    compose = ["docker", "compose"]
    if subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin")
    check = [*compose, "-f", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def committed() -> list[Path]:
    """What is committed, or would be by ``git add``."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_files_name_no_registry_and_no_machine():
    # Patterns that do not match themselves.
    banned = re.compile(rb"pypi\.org/simple|files\.pythonhosted\.org|/ro[o]t/|/wo[r]k/")
    found = [
        f"{path.relative_to(ROOT)} names {match[0].decode()}"
        for path in committed()
        for match in banned.finditer(path.read_bytes())
    ]
    assert not found, "\n".join(found)


def test_lock_files_are_not_committed():
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml"}
    assert not locks & {path.name for path in committed()}


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^\$? *make ([a-z-]+)", readme + contributing, re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"make ([a-z]+)", readme))
    assert named <= targets


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "\nmake test\n" in script.read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
