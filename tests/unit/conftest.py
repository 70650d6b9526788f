"""What no unit test leaves to another one of the same process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import celery.app.builtins  # noqa: F401  its tasks are every app's
import pytest
from celery import _state


@pytest.fixture(autouse=True)
def _tasks_of_this_test_only() -> Iterator[None]:
    """Celery gives every task of one app to all the others, unless it is told otherwise."""
    before = set(_state._on_app_finalizers)
    _state._on_app_finalizers.intersection_update(filter(is_celerys, before))
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(before)


def is_celerys(finalizer: Any) -> bool:
    """Whether it makes one of the tasks that Celery itself has."""
    return finalizer.__module__ == "celery.app.builtins"
