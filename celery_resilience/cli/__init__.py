"""What an operator types: ``celery dlq``, ``celery resilience`` and ``celery-resilience``."""
