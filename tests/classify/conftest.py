"""Real libraries, each where it is needed: skipped if missing here, a failure if missing in CI."""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import Any

import pytest


def library(name: str) -> Any:
    """The module *name*; without it the test is skipped, or fails where ``CI`` is set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Google's warn of Pythons that they will leave behind
        if os.environ.get("CI"):
            return import_module(name)
        return pytest.importorskip(name)
