"""Three cron jobs under celery beat."""
