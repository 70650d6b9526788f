"""tenant-schemas-celery: a retry and a replay run in the schema of the first attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.ecosystem.conftest import need
from tests.postgres import PostgresServer
from tests.servers import ServerMissing, eventually
from tests.worker import ROOT

need("tenant_schemas_celery", "django_tenants", "psycopg")

APP = "tests.ecosystem.apps.tenanted"
PREPARE = f"""
from {APP} import app, tenant
from django.db import connection
from django_tenants.utils import tenant_context
from tests.ecosystem.apps.tenants.models import Customer, Domain
with connection.schema_editor() as editor:
    editor.create_model(Customer)
    editor.create_model(Domain)
customer = Customer(schema_name="alice")
customer.save()
with tenant_context(customer):
    tenant.apply_async((1,), queue="eco")
    tenant.apply_async((9,), queue="eco")
"""


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except ServerMissing as exc:
        pytest.skip(str(exc))
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_attempts_run_in_the_schema_of_their_sender(scene, start_worker, tmp_path, postgres):
    env = {**scene.env, "POSTGRES_PORT": str(postgres.port)}
    told = {**os.environ, **env, "BROKER_URL": scene.url, "BACKEND_URL": scene.url}
    told["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, "-c", PREPARE], env=told, cwd=tmp_path, check=True, timeout=60)
    start_worker(APP, scene.broker, env=env)
    eventually(lambda: len(scene.letters()) == 1, 30, message="one has died")
    assert sorted(scene.lines()) == [
        "alice 0", "alice 0", "alice 1", "alice 1", "alice 2"
    ]  # fmt: skip
    replay = [sys.executable, "-m", "celery", "-A", APP, "dlq", "replay", "--all", "--yes"]
    subprocess.run(replay, env=told, cwd=tmp_path, check=True, timeout=60)
    eventually(lambda: len(scene.lines()) == 8, 30, message="three more attempts")
    assert {line.split()[0] for line in scene.lines()} == {"alice"}
