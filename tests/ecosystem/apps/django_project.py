"""A Django project: results and the schedule of beat are in its database."""

from __future__ import annotations

import os

import django
from celery import Celery
from django.conf import settings

from tests.ecosystem.apps.base import add_tasks, configure

settings.configure(
    SECRET_KEY="only for this test",
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django_celery_results",
        "django_celery_beat",
    ],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

app = Celery("eco")
configure(app)
app.conf.update(
    result_backend="django-db",
    result_extended=True,
    beat_scheduler="django_celery_beat.schedulers:DatabaseScheduler",
    beat_max_loop_interval=1,
)
add_tasks(app)
