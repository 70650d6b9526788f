"""A pytest plugin: every app that Celery's own fixtures make gets ``install(app)``."""

from __future__ import annotations

from typing import Any

from celery.contrib.testing import app as _celerys

from celery_resilience import install

_stock: Any = _celerys.TestApp


def _installed(*args: Any, **options: Any) -> Any:
    app = _stock(*args, **options)
    install(app)
    return app


_celerys.TestApp = _installed
