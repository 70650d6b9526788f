"""The Celery app: ``celery -A shop worker``."""

from __future__ import annotations

import os

from celery import Celery

from celery_resilience import install

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
install(app)
app.autodiscover_tasks()
