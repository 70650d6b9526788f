"""The types of the public names: ``public_names.py`` is checked by mypy and pyright."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import celery_resilience

ROOT = Path(__file__).parents[2]
NAMES = Path(__file__).with_name("public_names.py")


def run(*command: str) -> str:
    """What *command* prints if it succeeds."""
    done = subprocess.run(
        command, cwd=ROOT, timeout=100, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> str:
    """The path of a type checker beside this Python; under CI each has to be there."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return found


def test_pyright_agrees() -> None:
    assert "0 errors" in run(tool("pyright"), "--pythonpath", sys.executable)


def test_pyright_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    text = NAMES.read_text(encoding="utf-8")
    wrong.write_text(text.replace("assert_type(verdict.kind, Kind)", "assert_type(verdict, Kind)"))
    command = [tool("pyright"), "--pythonpath", sys.executable, str(wrong)]
    done = subprocess.run(command, cwd=ROOT, timeout=100, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"reportAssertTypeFailure" in done.stdout


def test_package_tells_that_it_is_typed() -> None:
    assert (Path(celery_resilience.__file__).parent / "py.typed").is_file()


def test_every_public_name_is_used_in_what_is_checked() -> None:
    text = NAMES.read_text(encoding="utf-8").partition("app: Any")[2]
    missing = [name for name in celery_resilience.__all__ if not re.search(rf"\b{name}\b", text)]
    assert missing == []
