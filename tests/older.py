"""Trees of earlier versions, out of git's history: their workers run beside those of today."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.worker import ROOT

__all__ = ["APP", "COMMITS", "NoHistory", "unpacked"]

#: The last commit of each version.
COMMITS = {"0.1.0": "2374c24"}
#: What is run in each tree.
APP = "tests.apps.mixed"


class NoHistory(Exception):
    """This is no git checkout, or it lacks the commit."""


def unpacked(commit: str, folder: Path) -> Path:
    """The tree of *commit* in *folder*, with the app of today that all versions can run."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        raise NoHistory("this is not a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "archive", commit]
    archive = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    if archive.returncode:
        said = archive.stderr.decode().strip()
        raise NoHistory(f"no commit {commit}: {said}; git fetch --unshallow may bring it")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    app = f"{APP.replace('.', '/')}.py"
    shutil.copy(ROOT / app, folder / app)
    return folder
