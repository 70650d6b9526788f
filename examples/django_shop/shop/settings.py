"""Only what an app with one model needs, and Celery's settings with their CELERY_ in front."""

from __future__ import annotations

import os
from pathlib import Path

SECRET_KEY = "an example"
INSTALLED_APPS = ["orders"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", Path(__file__).parent.parent / "db.sqlite3"),
    }
}

CELERY_BROKER_URL = os.environ.get("BROKER_URL", "redis://")
CELERY_RESULT_BACKEND = os.environ.get("BACKEND_URL", "redis://")
CELERY_TASK_DEFAULT_QUEUE = "examples.shop"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_RESILIENCE_DEAD_LETTER_QUEUE = "examples.shop.dead"
CELERY_RESILIENCE_APP_VERSION = "1.2.3"

BANK_URL = os.environ.get("BANK_URL", "http://127.0.0.1:8000")
