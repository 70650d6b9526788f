"""tenant-schemas-celery: a task runs in the schema that its sender was in."""

from __future__ import annotations

import os
from typing import Any

import django
from django.conf import settings
from tenant_schemas_celery.app import CeleryApp

from tests.ecosystem.apps.base import configure, note

settings.configure(
    SECRET_KEY="only for this test",
    DATABASES={
        "default": {
            "ENGINE": "django_tenants.postgresql_backend",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": "127.0.0.1",
            "PORT": os.environ["POSTGRES_PORT"],
        }
    },
    DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    INSTALLED_APPS=[
        "django_tenants",
        "django.contrib.contenttypes",
        "tests.ecosystem.apps.tenants",
    ],
    SHARED_APPS=["django_tenants", "django.contrib.contenttypes", "tests.ecosystem.apps.tenants"],
    TENANT_APPS=["django.contrib.contenttypes"],
    TENANT_MODEL="tenants.Customer",
    TENANT_DOMAIN_MODEL="tenants.Domain",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

from django.db import connection  # noqa: E402

app = CeleryApp("eco")
configure(app)


@app.task(
    bind=True, name="eco.tenant", autoretry_for=(ConnectionError,), max_retries=2,
    default_retry_delay=0,
)  # fmt: skip
def tenant(self: Any, failures: int) -> None:
    note(f"{connection.schema_name} {self.request.retries}")
    if self.request.retries < failures:
        raise ConnectionError("not yet")
